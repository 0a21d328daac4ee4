package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/transcode"
)

// scuObject is an object to be sent.
type scuObject struct {
	name               string // for people
	class, uid, syntax string
	open               func() (io.ReadCloser, error) // the bare data set
	as                 string                        // the transfer syntax that it was last sent in
}

// maxContexts is how many presentation contexts an association can have (PS3.8
// 9.3.2.2: odd identifiers up to 255).
const maxContexts = 128

// fileObject reads what is needed to send a Part-10 file.
func fileObject(path string) (*scuObject, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	o, err := dcm.Scan(f, st.Size())
	if o == nil {
		return nil, err
	}
	offset := o.DataSetOffset()
	obj := &scuObject{name: path, class: o.String(dcm.SOPClassUID), uid: o.String(dcm.SOPInstanceUID), syntax: o.TransferSyntaxUID()}
	if obj.class == "" {
		obj.class = o.String(dcm.MediaStorageSOPClassUID)
	}
	if obj.uid == "" {
		obj.uid = o.String(dcm.MediaStorageSOPInstanceUID)
	}
	if obj.class == "" || obj.uid == "" || obj.syntax == "" || offset <= 0 {
		if err == nil {
			err = errors.New("no SOP class, SOP instance or transfer syntax UID")
		}
		return nil, fmt.Errorf("not a DICOM file: %w", err)
	}
	obj.open = func() (io.ReadCloser, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
	return obj, nil
}

// push sends objects, in order, over as few associations as it takes. sent is
// called once for each, with the peer's status or the reason why there is none;
// what follows a failure is still sent. before, if set, is called before each
// object and may wait. The error is that no association can be opened: the rest
// was not sent.
func push(ctx context.Context, dialer *dicomnet.Dialer, address string, objects []*scuObject,
	before func(i int) error, sent func(o *scuObject, status dicomnet.Status, err error)) error {
	var a *dicomnet.Association
	defer func() {
		if a != nil {
			_ = a.Abort() // left by an error or the end of ctx
		}
	}()
	// A release that fails takes nothing back: every object has been answered.
	release := func() {
		if a != nil {
			_ = a.Release(ctx)
			a = nil
		}
	}
	proposed := 0 // objects[:proposed] have had their context proposed
	for i, o := range objects {
		if before != nil {
			if err := before(i); err != nil {
				return err
			}
		}
		if a != nil && i >= proposed {
			release()
		}
		if a == nil {
			var contexts []dicomnet.PresentationContext
			contexts, proposed = contextsFor(objects, i)
			var err error
			if a, err = dialer.Dial(ctx, address, contexts); err != nil {
				return err
			}
		}
		status, err := pushOne(ctx, a, o)
		if err != nil && !errors.Is(err, dicomnet.ErrNotAccepted) && !errors.Is(err, errUnreadable) {
			_ = a.Abort() // broken already
			a = nil
		}
		sent(o, status, err)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	release()
	return nil
}

// errUnreadable: the object could not be opened; nothing was sent.
var errUnreadable = errors.New("cannot be read")

func pushOne(ctx context.Context, a *dicomnet.Association, o *scuObject) (dicomnet.Status, error) {
	r, err := o.open()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	defer r.Close()
	o.as = o.syntax
	data := io.Reader(r)
	if !a.Accepts(o.class, o.syntax) {
		for _, to := range transcode.Targets(o.syntax) {
			if a.Accepts(o.class, to) {
				o.as, data = to, transcode.NewReader(r, o.syntax, to)
				break
			}
		}
	}
	return a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: o.class, SOPInstanceUID: o.uid, TransferSyntaxUID: o.as},
		data)
}

// contextsFor returns what objects[from:to] need, as far as one association can
// offer it. Each pair of SOP class and transfer syntax has a context of its own,
// so that the peer cannot choose a syntax that the file would have to be converted
// to if it takes the file as it is.
func contextsFor(objects []*scuObject, from int) (list []dicomnet.PresentationContext, to int) {
	type pair struct{ class, syntax string }
	seen := map[pair]bool{}
	for to = from; to < len(objects); to++ {
		o := objects[to]
		var more []dicomnet.PresentationContext
		for _, ts := range append([]string{o.syntax}, transcode.Targets(o.syntax)...) {
			if !seen[pair{o.class, ts}] {
				more = append(more, dicomnet.PresentationContext{AbstractSyntax: o.class,
					TransferSyntaxes: []string{ts}})
			}
		}
		if len(list)+len(more) > maxContexts {
			break
		}
		for _, c := range more {
			seen[pair{c.AbstractSyntax, c.TransferSyntaxes[0]}] = true
		}
		list = append(list, more...)
	}
	return list, to
}

// checkAddress takes HOST:PORT as typed.
func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return usagef("%q is not HOST:PORT, as 10.1.2.9:104", s)
	}
	return nil
}

// checkAETitles takes AE titles as typed.
func checkAETitles(titles ...string) error {
	for _, ae := range titles {
		if ae == "" || len(ae) > 16 || strings.TrimSpace(ae) != ae {
			return usagef("%q is not an AE title: 1 to 16 characters without spaces around them", ae)
		}
	}
	return nil
}
