package remote

import (
	"errors"
	"reflect"

	"github.com/diffdenoise/denoised/kernels"
)

// Info describes what a worker computes with.
type Info struct {
	Backend string `json:"backend"`           // kernels.Backend.Name
	Device  string `json:"device,omitempty"`  // the card's name
	Compute string `json:"compute,omitempty"` // its compute capability, as "8.9"
	Driver  string `json:"driver,omitempty"`  // its version, as "12.4"
	Memory  int64  `json:"memory,omitempty"`  // of the device, bytes
	Kernels string `json:"kernels,omitempty"` // which compiled code was loaded
	Version string `json:"version,omitempty"` // of the worker's build
	// Tolerance is how far the output of a network may be off, as cpu.Backend.Tolerance;
	// 0 if the backend does not say.
	Tolerance float64 `json:"tolerance,omitempty"`
}

// Stats is what a worker says of itself while it runs.
type Stats struct {
	Served int64 `json:"served"` // requests
	// Free and Total are the device's memory in bytes; 0 if the backend does not say.
	Free  int64 `json:"free,omitempty"`
	Total int64 `json:"total,omitempty"`
}

// hello is the first word of a worker.
type hello struct {
	Protocol int `json:"protocol"`
	// Refused says why the worker cannot compute; it then ends.
	Refused  string `json:"refused,omitempty"`
	Info     Info   `json:"info"`
	Parallel int    `json:"parallel"` // requests that it takes at a time
}

// failure is the answer to a request that could not be done.
type failure struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
}

// codes of the errors that mean something to the other end.
var codes = map[string]error{"memory": kernels.ErrMemory, "device": kernels.ErrDevice}

func failureOf(err error) failure {
	f := failure{Text: err.Error()}
	for code, is := range codes {
		if errors.Is(err, is) {
			f.Code = code
		}
	}
	return f
}

// Error is as the worker said it.
func (f *failure) Error() string { return f.Text }

// Unwrap returns the error of package kernels that it wrapped, if it did.
func (f *failure) Unwrap() error { return codes[f.Code] }

// progress says how many runs of the network a pair has had.
type progress struct {
	Runs int `json:"runs"`
}

// proceed answers a progress.
type proceed struct {
	Stop bool `json:"stop,omitempty"`
}

// graphHeader describes a kernels.Graph. The payload is its parameters.
type graphHeader struct {
	Network uint64       `json:"network"`
	Nodes   []nodeHeader `json:"nodes"`
}

// nodeHeader is what a method of kernels.Graph is given to add a node.
type nodeHeader struct {
	Op       kernels.Op           `json:"op"`
	From     []kernels.Value      `json:"from,omitempty"`
	Channels int                  `json:"channels,omitempty"` // of an input
	Vector   bool                 `json:"vector,omitempty"`   // of an input
	K        int                  `json:"k,omitempty"`
	Conv     *kernels.Convolution `json:"conv,omitempty"`
}

// encodeGraph describes g. It is an error if the description does not make the same graph.
func encodeGraph(id uint64, g *kernels.Graph) (graphHeader, error) {
	h := graphHeader{Network: id}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		node := nodeHeader{Op: n.Op, From: n.From, K: n.K, Conv: n.Conv}
		if n.Op == kernels.OpInput {
			node.Channels, node.Vector = n.Channels, n.Vector
		}
		h.Nodes = append(h.Nodes, node)
	}
	again, err := h.decode()
	if err == nil && !(reflect.DeepEqual(again.Nodes, g.Nodes) && reflect.DeepEqual(again.Params, g.Params)) {
		err = errors.New("the graph was not made by its methods")
	}
	return h, err
}

// decode builds the graph anew, by the methods that check it.
func (h *graphHeader) decode() (*kernels.Graph, error) {
	if len(h.Nodes) > kernels.MaxNodes {
		return nil, broken("a graph of %d operations", len(h.Nodes))
	}
	g := new(kernels.Graph)
	for i, n := range h.Nodes {
		if reads := len(n.From); n.Op == kernels.OpInput && reads != 0 || n.Op != kernels.OpInput &&
			n.Op != kernels.OpConv && reads != 1 {
			return nil, broken("operation %d reads %d values", i, len(n.From))
		}
		switch n.Op {
		case kernels.OpInput:
			if n.Vector {
				g.Vector(n.Channels)
			} else {
				g.Input(n.Channels)
			}
		case kernels.OpConv:
			if n.Conv == nil {
				return nil, broken("operation %d is a convolution without a description", i)
			}
			g.Conv(*n.Conv, n.From...)
		case kernels.OpRotate:
			g.Rotate(n.From[0], n.K)
		case kernels.OpShift:
			g.Shift(n.From[0], n.K)
		default:
			return nil, broken("operation %d is of kind %d", i, n.Op)
		}
		if err := g.Err(); err != nil {
			return nil, err
		}
	}
	return g, g.Err()
}

// constantsOf returns how many constants the graph of a kernels.Network has room for.
func constantsOf(g *kernels.Graph) int { return g.Nodes[0].Channels - kernels.NetIn }

// lengths returns the number of values of each parameter.
func lengths(g *kernels.Graph) (each []int, total int) {
	for i := range g.Params {
		each = append(each, g.Params[i].Len())
		total += g.Params[i].Len()
	}
	return each, total
}

// split cuts a payload into parts and returns what is left of it.
func split(payload []float32, lengths []int) (parts [][]float32, rest []float32) {
	for _, n := range lengths {
		parts, payload = append(parts, payload[:n:n]), payload[n:]
	}
	return parts, payload
}

// unloadHeader names a network that is not needed any more.
type unloadHeader struct {
	Network uint64 `json:"network"`
}

// imageHeader is a slice for a kernels.Network.
type imageHeader struct {
	Network uint64 `json:"network"`
	Width   int    `json:"width"`
	Height  int    `json:"height"`
}

// batchHeader is a batch for a kernels.Graph. The payload is its inputs.
type batchHeader struct {
	Network uint64 `json:"network"`
	Count   int    `json:"count"`
	Height  int    `json:"height"`
	Width   int    `json:"width"`
	Shifts  []int  `json:"shifts,omitempty"`
}

// inputLengths returns the length of each input, and of the output. It bounds sizes before they
// are multiplied; kernels.Graph.Check does the rest when there are slices.
func (h *batchHeader) inputLengths(g *kernels.Graph) (inputs []int, output int, err error) {
	if h.Count < 1 || h.Count > 1<<16 || h.Height < 1 || h.Width < 1 || h.Width > kernels.MaxPixels/h.Height {
		return nil, 0, broken("a batch of %d samples of %d×%d", h.Count, h.Width, h.Height)
	}
	length := func(n *kernels.Node) int {
		height, width := n.Size(h.Height, h.Width)
		return h.Count * height * width * n.Channels // at most 2^16 · 2^26 · 2^12
	}
	inputs = make([]int, g.Inputs())
	total := 0
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput {
			inputs[n.K] = length(n)
			total += inputs[n.K]
		}
	}
	output = length(g.Output())
	if max(total, output) > maxFloats {
		return nil, 0, broken("a batch of %d samples of %d×%d", h.Count, h.Width, h.Height)
	}
	return inputs, output, nil
}

// pairHeader is a call of kernels.Sampler. The payload is the noise, the inputs that are given, and
// for each step State, Keep, Add and the vector.
type pairHeader struct {
	batchHeader
	Steps int `json:"steps"`
}
