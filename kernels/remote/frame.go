package remote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"unsafe"
)

// protocol is the version of the frames. Both ends must have the same.
const protocol = 3

// kind is what a frame says.
type kind uint8

// Frames of the worker. A request has one result or failure, of its number.
const (
	kindHello    kind = iota + 1 // hello; the first frame, number 0
	kindResult                   // what was asked for
	kindFailure                  // failure
	kindProgress                 // progress, of a pair; the worker then waits for proceed
)

// Frames of the other end. All but the last are requests.
const (
	kindLoadNet   kind = iota + 16 // graphHeader, with the parameters, for kindForward and kindTrace
	kindLoadGraph                  // the same, for kindRun and kindPair
	kindUnload                     // unloadHeader
	kindForward                    // imageHeader; the image, the noise map, the constants. Result: the image
	kindTrace                      // the same. Result: the image and the layers
	kindRun                        // batchHeader; the inputs. Result: the output
	kindPair                       // pairHeader; the noise, the inputs, the steps. Result: mean and spread
	kindPing                       // nothing. Result: Stats
	kindProceed                    // proceed, with the number of a pair
)

// A frame is a head of headSize bytes, a header in JSON and a payload of floats, all little-endian:
//
//	0   4   magic
//	4   1   kind, then three zeros
//	8   8   number of the request
//	16  4   length of the header in bytes, at most maxHeader
//	20  4   length of the payload in floats, at most maxFloats
const (
	headSize  = 24
	magic     = "dnw1"
	maxHeader = 1 << 20
	maxFloats = 1 << 28 // 1 GiB
)

// head is the beginning of a frame.
type head struct {
	kind   kind
	id     uint64
	header int // bytes
	floats int
}

// errProtocol is wrapped by errors about frames that no honest peer sends.
var errProtocol = errors.New("the peer breaks the protocol")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

// append adds h to b as bytes.
func (h *head) append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, byte(h.kind), 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, h.id)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.header))
	return binary.LittleEndian.AppendUint32(b, uint32(h.floats))
}

// readHead reads the beginning of a frame. io.EOF means that there is none.
func readHead(r io.Reader) (head, error) {
	var b [headSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return head{}, err
	}
	header, floats := binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:])
	switch {
	case string(b[:4]) != magic || b[5] != 0 || b[6] != 0 || b[7] != 0:
		return head{}, broken("a frame begins with %x", b[:8])
	case header > maxHeader:
		return head{}, broken("a header of %d bytes, at most %d are allowed", header, maxHeader)
	case floats > maxFloats:
		return head{}, broken("a payload of %d floats, at most %d are allowed", floats, maxFloats)
	}
	return head{kind(b[4]), binary.LittleEndian.Uint64(b[8:]), int(header), int(floats)}, nil
}

// readHeader reads the JSON of h into v.
func (h *head) readHeader(r io.Reader, v any) error {
	b := make([]byte, h.header)
	if _, err := io.ReadFull(r, b); err != nil {
		return cut(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return broken("the header of frame %d: %v", h.kind, err)
	}
	return nil
}

// readOnly is readHeader for frames without a payload.
func (h *head) readOnly(r io.Reader, v any) error {
	if h.floats != 0 {
		return broken("frame %d has %d floats, want none", h.kind, h.floats)
	}
	return h.readHeader(r, v)
}

// cut makes an end within a frame an error.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// growth is how many floats of a payload are made room for before any have come.
const growth = 1 << 18

// readFloats reads n floats. It uses buf if they fit, and else makes room as they come, so that
// memory is taken for what has been sent and not for what has been announced.
func readFloats(r io.Reader, buf []float32, n int) ([]float32, error) {
	buf = buf[:0]
	for len(buf) < n {
		if len(buf) == cap(buf) {
			more := make([]float32, len(buf), min(max(2*len(buf), growth), n))
			copy(more, buf)
			buf = more
		}
		part := buf[len(buf):min(cap(buf), n)]
		if _, err := io.ReadFull(r, bytesOf(part)); err != nil {
			return buf, cut(err)
		}
		buf = buf[:len(buf)+len(part)]
	}
	return buf, nil
}

// bytesOf is the memory of f, which is what a frame has on a little-endian machine.
func bytesOf(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}

// errEndian: frames are not for this machine.
func errEndian() error {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return errors.New("this machine is not little-endian, for which there are no workers")
	}
	return nil
}

// errUnsent is wrapped by errors of send that left nothing on the connection.
var errUnsent = errors.New("not sent")

// writer sends frames. It is safe for concurrent use.
type writer struct {
	conn net.Conn
	mu   sync.Mutex
	text []byte // head and header
	bufs net.Buffers
}

// send writes a frame. header may be nil; the payload is its parts, one after the other.
func (w *writer) send(k kind, id uint64, header any, payload ...[]float32) error {
	var text []byte
	if header != nil {
		var err error
		if text, err = json.Marshal(header); err != nil {
			return fmt.Errorf("%w: header of frame %d: %w", errUnsent, k, err)
		}
	}
	h := head{kind: k, id: id, header: len(text)}
	for _, p := range payload {
		h.floats += len(p)
	}
	if h.header > maxHeader || h.floats > maxFloats {
		return fmt.Errorf("%w: frame %d of %d bytes and %d floats, more than it can hold", errUnsent, k, h.header, h.floats)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(h.append(w.text[:0]), text...)
	bufs := append(w.bufs[:0], w.text)
	for _, p := range payload {
		if len(p) > 0 {
			bufs = append(bufs, bytesOf(p))
		}
	}
	w.bufs = bufs
	_, err := bufs.WriteTo(w.conn)
	clear(w.bufs) // payloads are not ours to keep
	return err
}

// buffer is memory for floats that is used again.
type buffer struct{ floats []float32 }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// room returns n floats of a buffer.
func (b *buffer) room(n int) []float32 {
	if cap(b.floats) < n {
		b.floats = make([]float32, n)
	}
	return b.floats[:n]
}

func (b *buffer) read(r io.Reader, n int) (err error) {
	b.floats, err = readFloats(r, b.floats, n)
	return err
}
