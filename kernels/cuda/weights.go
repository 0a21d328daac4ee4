//go:build cuda && linux

package cuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// store collects weights in the order of the kernels, to be copied to the device at once.
type store struct{ bytes []byte }

// weights says where those of one convolution are in a store.
type weights struct {
	weights, bias int // bytes from the start
	in, out       int // channels
	chunks        [2]int
	groups        int // of output channels that they are laid out for
	perBlock      int // the most groups that a block of threads should compute
}

// chunksOf returns how many times 16 channels there are.
func chunksOf(channels int) int {
	return (channels + kernel.GroupChannels - 1) / kernel.GroupChannels
}

// conv adds a convolution with a size×size window over two sources of in channels each, the second of
// which may have none. w is [out, in, size, size].
//
// The weights become [chunk of 16 inputs, window column, window row, group of 16 outputs, lane, 8],
// where the 8 halves of a lane are those that mma.sync wants of it for the low and the high 8 columns of
// the group. Lane 4n+q has column n of both. Column n of the low 8 is output 4(n/2) + n%2, of the high 8
// the one two further, so that a lane then holds four outputs in sequence.
func (s *store) conv(w, bias []float32, out int, in [2]int, size int) (weights, error) {
	k := weights{in: in[0] + in[1], out: out, chunks: [2]int{chunksOf(in[0]), chunksOf(in[1])}}
	blocks := (chunksOf(out) + maxGroups - 1) / maxGroups
	k.perBlock = (chunksOf(out) + blocks - 1) / blocks
	k.groups = blocks * k.perBlock

	k.weights = len(s.bytes)
	all, taps := in[0]+in[1], size*size
	for chunk := range k.chunks[0] + k.chunks[1] {
		// Channels first to last of all are inputs of the chunk.
		first, last := chunk*kernel.GroupChannels, in[0]
		if chunk >= k.chunks[0] {
			first, last = in[0]+(chunk-k.chunks[0])*kernel.GroupChannels, all
		}
		for tap := range taps {
			kx, ky := tap/size, tap%size
			for group := range k.groups {
				for lane := range 32 {
					for i := range 8 {
						input := first + i/2%2*8 + lane%4*2 + i%2
						n := lane / 4
						output := group*kernel.GroupChannels + n/2*4 + i/4*2 + n%2
						var h uint16
						if input < last && output < out {
							h = toHalf(w[((output*all+input)*size+ky)*size+kx])
							if h&0x7fff == 0x7c00 {
								return k, fmt.Errorf("weight of output %d is beyond the largest half, 65504", output)
							}
						}
						s.bytes = binary.NativeEndian.AppendUint16(s.bytes, h)
					}
				}
			}
		}
	}
	k.bias = len(s.bytes)
	s.floats(bias, k.groups*kernel.GroupChannels)
	return k, nil
}

// linear adds a layer of vectors, in single precision. w is [out, in] and becomes [in, out].
func (s *store) linear(w, bias []float32, out int) weights {
	in := len(w) / out
	k := weights{in: in, out: out, weights: len(s.bytes)}
	turned := make([]float32, len(w))
	for o := range out {
		for i := range in {
			turned[i*out+o] = w[o*in+i]
		}
	}
	s.floats(turned, len(turned))
	k.bias = len(s.bytes)
	s.floats(bias, len(bias))
	return k
}

// floats adds n numbers, with zeros after those of v, and goes on at a multiple of 16 bytes.
func (s *store) floats(v []float32, n int) {
	for i := range (n + 3) / 4 * 4 {
		var f float32
		if i < len(v) {
			f = v[i]
		}
		s.bytes = binary.NativeEndian.AppendUint32(s.bytes, math.Float32bits(f))
	}
}

// resident is what a network or program keeps on the device.
type resident struct {
	b       *Backend
	address driver.Ptr
}

// load copies a store to the device.
func (b *Backend) load(s *store) (*resident, error) {
	r := &resident{b: b}
	if len(s.bytes) == 0 {
		s.floats(nil, 4) // so that there is something to release
	}
	if err := b.pool.alloc(&r.address, len(s.bytes)); err != nil {
		return nil, fmt.Errorf("copy weights: %w", err)
	}
	if err := b.upload(r.address, s.bytes); err != nil {
		return nil, errors.Join(fmt.Errorf("copy weights: %w", err), b.device.Free(r.address))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.loaded[r] = struct{}{}
	return r, nil
}

func (b *Backend) upload(to driver.Ptr, bytes []byte) error {
	host, err := b.device.Pin(len(bytes))
	if err != nil {
		return err
	}
	defer host.Free()
	on, err := b.device.NewStream()
	if err != nil {
		return err
	}
	defer on.Destroy()
	copy(host.Bytes(), bytes)
	if err := on.CopyIn(to, host, 0, len(bytes)); err != nil {
		return err
	}
	return on.Sync()
}

// release frees what r has, unless that has been done.
func (r *resident) release() error { return r.b.release(r) }

// free implements owned: the memory, and the plans that read it.
func (r *resident) free() error {
	return errors.Join(r.b.pool.forget(r), r.b.device.Free(r.address))
}

// at is the address of a place in the store.
func (r *resident) at(offset int) driver.Ptr { return r.address + driver.Ptr(offset) }
