package dicomnet

import (
	"errors"
	"fmt"
	"io"

	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// objectReader is the data set of one message: the fragments that follow the
// command, across PDUs, as one stream. Its errors are final.
type objectReader struct {
	t      *transport
	id     byte  // presentation context of the command
	n      int64 // bytes consumed
	limit  int64
	last   bool // the current fragment is the last
	empty  int  // fragments without data in a row
	grace  bool // draining beyond the limit
	closed bool // Store has returned
	err    error
}

// advance makes sure that there are bytes left in the current fragment; io.EOF
// says that the data set is complete.
func (r *objectReader) advance() error {
	for r.err == nil && r.t.fragLeft == 0 {
		if r.last {
			r.err = io.EOF
			break
		}
		h, err := r.t.nextFragment()
		switch {
		case err == errReleased:
			// Legal for the upper layer, but the message is cut: an answer to the
			// release would look as if all were well.
			err = errors.New("release inside a data set")
		case err != nil:
			err = cut(err)
		case h.Command:
			err = violation(pdu.ReasonUnexpectedParameter, "a command inside a data set")
		case h.ContextID != r.id:
			err = violation(pdu.ReasonUnexpectedParameter, "presentation context %d inside a data set of %d", h.ContextID, r.id)
		case h.Length > 0:
			r.empty = 0
		default:
			if r.empty++; r.empty > maxEmptyFragments {
				err = violation(pdu.ReasonInvalidParameter, "too many empty fragments")
			}
		}
		if err != nil {
			return r.fail(err)
		}
		r.last = h.Last
	}
	if r.err == nil && r.n >= r.limit {
		r.err = fmt.Errorf("%w of %d bytes", ErrObjectTooLarge, r.limit)
	}
	return r.err
}

// room cuts n to what the limit still allows.
func (r *objectReader) room(n int) int { return int(min(int64(n), r.limit-r.n)) }

func (r *objectReader) fail(err error) error {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %w", ErrIncomplete, cut(err))
	}
	return r.err
}

// handlerReader is what a Session sees of an objectReader.
type handlerReader struct{ r *objectReader }

// Read implements io.Reader.
func (h handlerReader) Read(p []byte) (int, error) {
	r := h.r
	if r.closed {
		return 0, ErrReaderClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.advance(); err != nil {
		return 0, err
	}
	n, err := r.t.take(p[:r.room(len(p))])
	r.n += int64(n)
	return n, r.fail(err)
}

// WriteTo implements io.WriterTo: it writes straight from the receive buffer.
func (h handlerReader) WriteTo(w io.Writer) (total int64, err error) {
	r := h.r
	for {
		if r.closed {
			return total, ErrReaderClosed
		}
		if err := r.advance(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
		b, err := r.t.peek()
		if err != nil {
			return total, r.fail(err)
		}
		b = b[:r.room(len(b))]
		n, err := w.Write(b)
		if n < 0 || n > len(b) {
			return total, io.ErrShortWrite
		}
		r.t.advance(n)
		r.n += int64(n)
		total += int64(n)
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}
