//go:build cuda && linux

package cuda

import (
	"errors"
	"sync"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// maxBatch is the most images that run at once.
const maxBatch = 16

// inFlight is how many batches are under way: the images of one are copied while another one computes.
const inFlight = 2

// queue gathers images that wait for the device into batches. There is no goroutine but those of the
// callers: one that finds the device free runs its own image and those that wait and have the same size.
// It waits for nobody else to come.
type queue struct {
	mu      sync.Mutex
	waiting []*call
	free    chan *batch // those not under way
}

func (q *queue) init() {
	q.free = make(chan *batch, inFlight)
	for range inFlight {
		q.free <- new(batch)
	}
}

// call is one image that a caller waits for.
type call struct {
	dst, y, sigma []float32
	width, height int
	constants     [kernel.Constants]float32

	batch *batch     // that somebody else runs, set before turn
	turn  chan int   // its number in that batch
	done  chan error // the batch has run
}

var calls = sync.Pool{New: func() any { return &call{turn: make(chan int, 1), done: make(chan error, 1)} }}

func getCall(dst, y, sigma []float32, width, height int, constants []float32) *call {
	c := calls.Get().(*call)
	c.dst, c.y, c.sigma, c.width, c.height = dst, y, sigma, width, height
	clear(c.constants[:])
	copy(c.constants[:], constants)
	return c
}

func (c *call) put() {
	c.dst, c.y, c.sigma, c.batch = nil, nil, nil, nil
	calls.Put(c)
}

// load puts the image where plan p takes image i from.
func (c *call) load(p *plan, i int) {
	copy(p.given(p.inputs[inputImage])[i*c.width*c.height:], c.y)
	h, w := (c.height+1)/2, (c.width+1)/2
	cellMeans(p.given(p.inputs[inputNoise])[i*h*w:][:h*w], c.sigma, c.width, c.height)
	copy(p.given(p.inputs[inputConstants])[i*len(c.constants):], c.constants[:])
}

// cellMeans writes the noise as a network sees it, SigmaScale times the mean of every cell of 2×2 pixels.
// That it is not the device that does so saves most of the copy of the map.
func cellMeans(dst, sigma []float32, width, height int) {
	w := (width + 1) / 2
	for r := 0; r < height; r += 2 {
		out := dst[r/2*w:][:w]
		row0 := sigma[r*width:][:width]
		row1 := sigma[min(r+1, height-1)*width:][:width]
		for c := range width / 2 {
			out[c] = (row0[2*c] + row0[2*c+1] + row1[2*c] + row1[2*c+1]) * (kernels.SigmaScale / 4.0)
		}
		if c := width - 1; width%2 == 1 {
			out[w-1] = (row0[c] + row0[c] + row1[c] + row1[c]) * (kernels.SigmaScale / 4.0)
		}
	}
}

// unload gets the result of image i.
func (c *call) unload(p *plan, i int) error {
	n := c.width * c.height
	result := p.result()[i*n:][:n]
	if err := overflow(result, c.y, c.sigma, c.constants[:]); err != nil {
		return err
	}
	copy(c.dst, result)
	return nil
}

// batch is images that run together. Each caller copies its own.
type batch struct {
	plan           *plan
	others         []*call
	loaded, unread sync.WaitGroup // of the others
}

// wait returns when the image of c has been computed.
func (n *network) wait(c *call) error {
	n.mu.Lock()
	n.waiting = append(n.waiting, c)
	n.mu.Unlock()
	select {
	case i := <-c.turn:
		return c.follow(i)
	case b := <-n.free:
		if n.leave(c) {
			err := n.lead(c, b)
			n.free <- b
			return err
		}
		n.free <- b
		return c.follow(<-c.turn)
	}
}

// leave takes c out of those that wait, unless a batch has it.
func (n *network) leave(c *call) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, w := range n.waiting {
		if w == c {
			n.waiting = append(n.waiting[:i], n.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// follow is the part of a caller whose image is number i of a batch that somebody else runs.
func (c *call) follow(i int) error {
	b := c.batch
	c.load(b.plan, i)
	b.loaded.Done()
	err := <-c.done
	if err == nil {
		err = c.unload(b.plan, i)
	}
	b.unread.Done()
	return err
}

// lead runs the image of c and those that wait for one like it.
func (n *network) lead(c *call, b *batch) error {
	n.mu.Lock()
	most := 1
	for _, w := range n.waiting {
		if w.width == c.width && w.height == c.height && most < maxBatch {
			most++
		}
	}
	n.mu.Unlock()
	p, err := n.plan(c.height, c.width, most)
	if errors.Is(err, driver.ErrOutOfMemory) {
		return n.strips(c)
	}
	if err != nil {
		return err
	}
	defer n.b.pool.put(p)
	b.plan, b.others = p, b.others[:0]
	n.mu.Lock()
	kept := n.waiting[:0]
	for _, w := range n.waiting {
		if len(b.others) < p.count-1 && w.width == c.width && w.height == c.height {
			b.others = append(b.others, w)
		} else {
			kept = append(kept, w)
		}
	}
	clear(n.waiting[len(kept):])
	n.waiting = kept
	n.mu.Unlock()

	b.loaded.Add(len(b.others))
	b.unread.Add(len(b.others))
	for i, w := range b.others {
		w.batch = b
		w.turn <- i + 1
	}
	c.load(p, 0)
	b.loaded.Wait()
	err = p.run()
	for _, w := range b.others {
		w.done <- err
	}
	if err == nil {
		err = c.unload(p, 0)
	}
	b.unread.Wait()
	return err
}
