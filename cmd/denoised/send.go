package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm/transcode"
)

func newSendCmd() *cobra.Command {
	var aet, aec string
	cmd := &cobra.Command{
		Use:   "send HOST:PORT FILE|FOLDER...",
		Short: "Send DICOM files to a peer (C-STORE)",
		Long: `Send DICOM files, and those in folders and the folders below them, to a peer
over as few associations as it takes. Files that are not DICOM are named and
skipped when they come from a folder. An object that the peer refuses does not
stop the others. A peer that does not take the transfer syntax of a file gets what
the file can be converted to without loss: Explicit or Implicit VR Little Endian,
unless it is compressed. Exit code 0 means that the peer has confirmed every object.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAddress(args[0]); err != nil {
				return err
			}
			if err := checkAETitles(aet, aec); err != nil {
				return err
			}
			s := &sending{out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr(), address: args[0], counts: map[string]int{},
				converted: map[string]int{},
				dialer:    dicomnet.Dialer{CallingAETitle: aet, CalledAETitle: aec}}
			return s.run(cmd.Context(), args[1:])
		},
	}
	cmd.Flags().StringVar(&aet, "aet", defaultCalling, "calling AE title (ours)")
	cmd.Flags().StringVar(&aec, "aec", defaultCalled, "called AE title (the peer's)")
	return cmd
}

// sending is one run of send.
type sending struct {
	out, errOut io.Writer
	address     string
	dialer      dicomnet.Dialer

	counts           map[string]int // by status
	converted        map[string]int // stored in another transfer syntax than the file's, by its name
	stored, notSent  int
	skipped, invalid int // in folders; named by the user
}

func (s *sending) run(ctx context.Context, paths []string) error {
	objects, err := s.collect(ctx, paths)
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		return fmt.Errorf("send to %s: no DICOM files found", s.address)
	}
	began := time.Now()
	progress, finish := s.progress(len(objects))
	answered := 0
	err = push(ctx, &s.dialer, s.address, objects, nil, func(o *scuObject, status dicomnet.Status, err error) {
		answered++
		word := status.String()
		switch {
		case errors.Is(err, errUnreadable):
			word = "not readable"
		case errors.Is(err, dicomnet.ErrNotAccepted):
			word = "SOP class or transfer syntax not accepted by the peer"
		case err != nil:
			word = "association broken"
		case status.IsFailure():
		default:
			s.stored++
			if o.as != o.syntax {
				s.converted[transcode.Name(o.as)]++
			}
		}
		if err != nil || !status.IsSuccess() {
			detail := word
			if err != nil {
				detail = err.Error()
			}
			fmt.Fprintf(progress, "%s: %s\n", o.name, detail)
		}
		s.counts[word]++
		finish(false)
	})
	finish(true)
	s.notSent = len(objects) - answered
	s.summary(len(objects), time.Since(began))
	switch {
	case err != nil:
		return fmt.Errorf("send to %s: %d of %d objects confirmed: %w", s.address, s.stored, len(objects), err)
	case s.stored < len(objects) || s.invalid > 0:
		return fmt.Errorf("send to %s: %d of %d objects confirmed", s.address, s.stored, len(objects)+s.invalid)
	}
	return nil
}

// collect finds the objects, in the order of their names.
func (s *sending) collect(ctx context.Context, paths []string) ([]*scuObject, error) {
	var objects []*scuObject
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case d.IsDir() || path != root && !d.Type().IsRegular():
				return nil
			}
			o, err := fileObject(path)
			if err != nil {
				if path == root {
					s.invalid++
				} else {
					s.skipped++
				}
				fmt.Fprintf(s.errOut, "%s: skipped: %v\n", path, err)
				return nil
			}
			objects = append(objects, o)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("send: %w", err)
		}
	}
	return objects, nil
}

// progress returns where lines may be printed while objects are on their way,
// and what to call after each and at the end.
func (s *sending) progress(total int) (lines io.Writer, finish func(all bool)) {
	if f, ok := s.errOut.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return s.errOut, func(bool) {}
	}
	p := mpb.New(mpb.WithOutput(s.errOut), mpb.WithWidth(50))
	bar := p.AddBar(int64(total), mpb.PrependDecorators(decor.CountersNoUnit("%d / %d ")), mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
	return p, func(all bool) {
		if !all {
			bar.Increment()
			return
		}
		if !bar.Completed() {
			bar.Abort(false)
		}
		p.Wait()
	}
}

func (s *sending) summary(total int, took time.Duration) {
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, word := range slices.SortedFunc(maps.Keys(s.counts), func(a, b string) int {
		return cmp.Or(s.counts[b]-s.counts[a], cmp.Compare(a, b))
	}) {
		fmt.Fprintf(t, "%d\t%s\n", s.counts[word], word)
	}
	for _, name := range slices.Sorted(maps.Keys(s.converted)) {
		fmt.Fprintf(t, "%d\tsent as %s\n", s.converted[name], name)
	}
	for _, c := range []struct {
		n    int
		what string
	}{{s.notSent, "not sent"}, {s.skipped + s.invalid, "skipped: not DICOM"}} {
		if c.n > 0 {
			fmt.Fprintf(t, "%d\t%s\n", c.n, c.what)
		}
	}
	_ = t.Flush() // to the same place as everything else
	fmt.Fprintf(s.out, "%d of %d objects confirmed by %s (%s) in %v\n", s.stored, total, s.address, s.dialer.CalledAETitle, took.Round(time.Millisecond))
}
