package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Limits of a Graph, beside those of a Conv.
const (
	MaxNodes = 1024
	MaxDown  = 6 // halvings of the size between an input and the deepest value
	MaxShift = 8 // rows that a Shift moves by
)

// Graph is a network that can be trained: operations in the order in which they
// run, each of which makes one value from earlier ones. A value is a tensor
// [height, width, channels] per sample, channels last; a vector has height and
// width 1. The last value is the output.
//
// A Graph is built by its methods, which return the number of the new value. They
// note the first mistake, which Err returns, so that a network reads as a list of
// its layers.
type Graph struct {
	Nodes  []Node
	Params []Param
	err    error
}

// Value is a tensor of a Graph, by number.
type Value int

// None stands for no value.
const None Value = -1

// Op is what a Node computes.
type Op uint8

// Operations. H and W are the height and width of the (first) source.
const (
	OpInput  Op = iota // an image of the batch
	OpConv             // see Convolution
	OpRotate           // by Node.K quarter turns counterclockwise
	OpShift            // down by Batch.Shifts[Node.K] rows, zeros above
)

// Param is a tensor of weights or biases.
type Param struct {
	Name  string
	Shape []int   // [out, in, ky, kx] or [out]
	Scale float64 // standard deviation at the start; 0 starts at zero
}

// Len returns the number of values of p.
func (p *Param) Len() int {
	n := 1
	for _, s := range p.Shape {
		n *= s
	}
	return n
}

// Node is one operation.
type Node struct {
	Op       Op
	From     []Value
	Channels int // of the result
	Down     int // the result is smaller than an input by 2 to the power of Down
	Turned   bool
	Vector   bool
	K        int          // OpInput: which one; OpRotate: quarter turns; OpShift: which shift
	Conv     *Convolution // OpConv only
	// Weight and Bias are numbers of Params, for OpConv.
	Weight, Bias int
}

// Activation is what follows a convolution.
type Activation uint8

// Activations.
const (
	Linear    Activation = iota
	ReLU                 // max(0, x)
	LeakyReLU            // max(x, LeakySlope·x)
)

// LeakySlope is the slope of LeakyReLU below zero.
const LeakySlope = 0.1

// Slope returns the factor of negative values.
func (a Activation) Slope() float32 {
	switch a {
	case ReLU:
		return 0
	case LeakyReLU:
		return LeakySlope
	}
	return 1
}

// Convolution is a cross-correlation over one source, or over the channels of
// two. With the sources x and the parameters w [Out, in, Size, Size] and b [Out]
// it computes
//
//	z = b + Σ w·x             over a zero-padded Size×Size window
//	z = z·(1+f[:Out]) + f[Out:]   if FiLM is given, a vector of 2·Out channels
//	y = activation(z) + Residual
//
// Size 3 has stride 1 and keeps the size; Top of its two padding rows lie above
// (1: centred, 2: the window ends in the pixel's own row, so that nothing below
// is seen). Size 2 has stride 2 and halves the size. Size 1 is pointwise.
// A Residual goes with no activation only.
type Convolution struct {
	Name       string // of the parameters; convolutions of one name share them
	Out        int
	Size       int
	Top        int  // rows of padding above, 0 to 2, for Size 3
	Up         bool // the first source is doubled in size, each pixel repeated
	Activation Activation
	FiLM       Value // None: without
	Residual   Value // None: without
	// Start scales the initial weights, which are normal with variance 2/fan-in
	// for a Start of 1 (He et al. 2015).
	Start float64
}

// Conv3 returns a centred 3×3 convolution with the activation.
func Conv3(name string, out int, a Activation) Convolution {
	return Convolution{Name: name, Out: out, Size: 3, Top: 1, Activation: a, FiLM: None, Residual: None, Start: 1}
}

// Conv1 returns a pointwise convolution; on a vector it is a linear layer.
func Conv1(name string, out int, a Activation) Convolution {
	return Convolution{Name: name, Out: out, Size: 1, Activation: a, FiLM: None, Residual: None, Start: 1}
}

// Down2 returns a 2×2 convolution of stride 2.
func Down2(name string, out int, a Activation) Convolution {
	return Convolution{Name: name, Out: out, Size: 2, Activation: a, FiLM: None, Residual: None, Start: 1}
}

// Err returns the first mistake made while building.
func (g *Graph) Err() error {
	if g.err == nil && len(g.Nodes) == 0 {
		return fmt.Errorf("graph is empty")
	}
	return g.err
}

// Inputs returns the number of inputs.
func (g *Graph) Inputs() int {
	n := 0
	for i := range g.Nodes {
		if g.Nodes[i].Op == OpInput {
			n = max(n, g.Nodes[i].K+1)
		}
	}
	return n
}

// Shifts returns the number of run-time shifts.
func (g *Graph) Shifts() int {
	n := 0
	for i := range g.Nodes {
		if g.Nodes[i].Op == OpShift {
			n = max(n, g.Nodes[i].K+1)
		}
	}
	return n
}

// Multiple returns what height and width of the inputs must be multiples of.
func (g *Graph) Multiple() int {
	down := 0
	for i := range g.Nodes {
		down = max(down, g.Nodes[i].Down)
	}
	return 1 << down
}

// Output returns the last value's node.
func (g *Graph) Output() *Node { return &g.Nodes[len(g.Nodes)-1] }

// Size returns height and width of a node's result for inputs of h×w.
func (n *Node) Size(h, w int) (int, int) {
	if n.Vector {
		return 1, 1
	}
	if n.Turned {
		h, w = w, h
	}
	return h >> n.Down, w >> n.Down
}

// Reads returns the values that n reads.
func (n *Node) Reads() []Value {
	from := append([]Value(nil), n.From...)
	if n.Conv != nil && n.Conv.FiLM != None {
		from = append(from, n.Conv.FiLM)
	}
	if n.Conv != nil && n.Conv.Residual != None {
		from = append(from, n.Conv.Residual)
	}
	return from
}

func (g *Graph) fail(format string, args ...any) Value {
	if g.err == nil {
		g.err = fmt.Errorf("graph, operation %d: "+format, append([]any{len(g.Nodes)}, args...)...)
	}
	return 0
}

func (g *Graph) add(n Node) Value {
	if len(g.Nodes) >= MaxNodes {
		return g.fail("more than %d operations", MaxNodes)
	}
	if n.Channels < 1 || n.Channels > MaxChannels {
		return g.fail("%d channels, allowed are 1 to %d", n.Channels, MaxChannels)
	}
	if n.Down < 0 || n.Down > MaxDown {
		return g.fail("size is reduced %d times, allowed are 0 to %d", n.Down, MaxDown)
	}
	g.Nodes = append(g.Nodes, n)
	return Value(len(g.Nodes) - 1)
}

// node returns the node of v, or one that harms nobody after a mistake.
func (g *Graph) node(v Value) Node {
	if v < 0 || int(v) >= len(g.Nodes) {
		g.fail("value %d does not exist", v)
		return Node{Channels: 1}
	}
	return g.Nodes[v]
}

// Input adds the next image input.
func (g *Graph) Input(channels int) Value {
	return g.add(Node{Op: OpInput, Channels: channels, K: g.Inputs()})
}

// Vector adds the next input as a vector.
func (g *Graph) Vector(channels int) Value {
	return g.add(Node{Op: OpInput, Channels: channels, K: g.Inputs(), Vector: true})
}

// Conv adds a convolution over one or two sources.
func (g *Graph) Conv(c Convolution, from ...Value) Value {
	if len(from) < 1 || len(from) > 2 {
		return g.fail("%s: convolution of %d sources, allowed are 1 and 2", c.Name, len(from))
	}
	x := g.node(from[0])
	n := Node{Op: OpConv, From: from, Channels: c.Out, Down: x.Down, Turned: x.Turned, Vector: x.Vector, Conv: &c}
	in := x.Channels
	if c.Up {
		n.Down--
	}
	if len(from) == 2 {
		s := g.node(from[1])
		if s.Down != n.Down || s.Turned != n.Turned || s.Vector != n.Vector {
			return g.fail("%s: the two sources differ in size", c.Name)
		}
		in += s.Channels
	}
	switch {
	case c.Size == 1 && c.Top == 0:
	case c.Size == 2 && c.Top == 0 && !n.Vector:
		n.Down++
	case c.Size == 3 && c.Top >= 0 && c.Top <= 2 && !n.Vector:
	default:
		return g.fail("%s: window of %d with %d rows above", c.Name, c.Size, c.Top)
	}
	if c.Up && n.Vector {
		return g.fail("%s: a vector cannot be doubled", c.Name)
	}
	if c.FiLM != None {
		if f := g.node(c.FiLM); !f.Vector || f.Channels != 2*c.Out {
			return g.fail("%s: FiLM needs a vector of %d channels", c.Name, 2*c.Out)
		}
	}
	if c.Residual != None {
		r := g.node(c.Residual)
		if r.Channels != c.Out || r.Down != n.Down || r.Turned != n.Turned || r.Vector != n.Vector {
			return g.fail("%s: residual differs in shape", c.Name)
		}
		if c.Activation != Linear {
			return g.fail("%s: a residual goes with no activation", c.Name)
		}
	}
	std := c.Start * math.Sqrt(2/float64(in*c.Size*c.Size))
	n.Weight = g.param(Param{c.Name + ".weight", []int{c.Out, in, c.Size, c.Size}, std})
	n.Bias = g.param(Param{c.Name + ".bias", []int{c.Out}, 0})
	return g.add(n)
}

// param returns the number of a parameter, a new one if there is none of that name.
func (g *Graph) param(p Param) int {
	for i := range g.Params {
		if g.Params[i].Name == p.Name {
			if fmt.Sprint(g.Params[i].Shape) != fmt.Sprint(p.Shape) {
				g.fail("%s has shapes %v and %v", p.Name, g.Params[i].Shape, p.Shape)
			}
			return i
		}
	}
	g.Params = append(g.Params, p)
	return len(g.Params) - 1
}

// Rotate adds a rotation by k quarter turns counterclockwise, 0 to 3.
func (g *Graph) Rotate(x Value, k int) Value {
	n := g.node(x)
	if k < 0 || k > 3 || n.Vector {
		return g.fail("rotation by %d quarter turns", k)
	}
	return g.add(Node{Op: OpRotate, From: []Value{x}, Channels: n.Channels, Down: n.Down, Turned: n.Turned != (k&1 == 1), K: k})
}

// Shift adds a move down by a number of rows that is given at run time:
// Batch.Shifts[k].
func (g *Graph) Shift(x Value, k int) Value {
	n := g.node(x)
	if k < 0 || k > 7 || n.Vector {
		return g.fail("shift number %d", k)
	}
	return g.add(Node{Op: OpShift, From: []Value{x}, Channels: n.Channels, Down: n.Down, Turned: n.Turned, K: k})
}

// Init returns fresh parameters, in the order of Params: the same for the same seed.
func (g *Graph) Init(seed uint64) [][]float32 {
	rng := rand.New(rand.NewPCG(seed, 0x67726170))
	params := make([][]float32, len(g.Params))
	for i := range g.Params {
		p := make([]float32, g.Params[i].Len())
		if s := g.Params[i].Scale; s > 0 {
			for j := range p {
				p[j] = float32(s * rng.NormFloat64())
			}
		}
		params[i] = p
	}
	return params
}

// CheckParams reports parameters that do not fit g or are not finite.
func (g *Graph) CheckParams(params [][]float32) error {
	if err := g.Err(); err != nil {
		return err
	}
	if len(params) != len(g.Params) {
		return &ShapeError{"graph", "number of parameters", len(params), len(g.Params)}
	}
	for i, p := range params {
		if len(p) != g.Params[i].Len() {
			return &ShapeError{"graph", "length of " + g.Params[i].Name, len(p), g.Params[i].Len()}
		}
		for _, v := range p {
			if v-v != 0 {
				return fmt.Errorf("graph: %s has a value that is not finite", g.Params[i].Name)
			}
		}
	}
	return nil
}

// FLOP returns the floating-point operations of the convolutions of one forward
// run for inputs of h×w, two per multiply-add. Training takes three times that.
func (g *Graph) FLOP(h, w int) float64 {
	total := 0.0
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == OpConv {
			nh, nw := n.Size(h, w)
			total += 2 * float64(g.Params[n.Weight].Len()) * float64(nh) * float64(nw)
		}
	}
	return total
}

// Batch is what a Graph runs on: Count samples of Height×Width.
type Batch struct {
	Count, Height, Width int
	// Inputs are [Count, Height, Width, channels], vectors [Count, channels].
	Inputs [][]float32
	Shifts []int // rows, 0 to MaxShift, for OpShift
	// For training: Target is as the output; Weight is [Count, output height, output
	// width] and multiplies the loss of each pixel, nil is 1 everywhere.
	Target, Weight []float32
}

// Check reports the first thing in b that does not fit g. Training tells whether
// a target is needed.
func (g *Graph) Check(b *Batch, training bool) error {
	m := g.Multiple()
	switch {
	case b.Count < 1 || b.Count > 1<<16:
		return &ShapeError{"graph", "number of samples", b.Count, 1}
	case b.Height < 1 || b.Width < 1 || b.Width > MaxPixels/b.Height:
		return &ShapeError{"graph", "height times width", b.Height * b.Width, MaxPixels}
	case b.Height%m != 0:
		return &ShapeError{"graph", "height", b.Height, (b.Height + m - 1) / m * m}
	case b.Width%m != 0:
		return &ShapeError{"graph", "width", b.Width, (b.Width + m - 1) / m * m}
	case len(b.Inputs) != g.Inputs():
		return &ShapeError{"graph", "number of inputs", len(b.Inputs), g.Inputs()}
	case len(b.Shifts) != g.Shifts():
		return &ShapeError{"graph", "number of shifts", len(b.Shifts), g.Shifts()}
	}
	for _, s := range b.Shifts {
		if s < 0 || s > MaxShift {
			return &ShapeError{"graph", "shift", s, MaxShift}
		}
	}
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == OpInput {
			h, w := n.Size(b.Height, b.Width)
			if want := b.Count * h * w * n.Channels; len(b.Inputs[n.K]) != want {
				return &ShapeError{"graph", fmt.Sprintf("length of input %d", n.K), len(b.Inputs[n.K]), want}
			}
		}
	}
	if training {
		h, w := g.Output().Size(b.Height, b.Width)
		if want := b.Count * h * w * g.Output().Channels; len(b.Target) != want {
			return &ShapeError{"graph", "length of the target", len(b.Target), want}
		}
		if want := b.Count * h * w; b.Weight != nil && len(b.Weight) != want {
			return &ShapeError{"graph", "length of the weights", len(b.Weight), want}
		}
	}
	return nil
}

// TrainOptions say how a Trainer changes the parameters: AdamW (Loshchilov and
// Hutter 2019) with clipped gradients, and an exponential mean of the parameters.
// What it makes small, the loss, is the mean square of output minus target over all
// values of the output.
type TrainOptions struct {
	Beta1   float64 // of the mean of gradients; 0 means 0.9
	Beta2   float64 // of the mean of their squares; 0 means 0.999
	Decay   float64 // of the weights (not of biases), per step and rate
	Clip    float64 // greatest norm of the gradient; 0 means no limit
	EMA     float64 // of the exponential mean per step; 0 means 0.999
	Workers int     // threads; 0 means one per processor. The result is the same for any number.
}

// WithDefaults returns o with zero fields set to what they mean.
func (o TrainOptions) WithDefaults() TrainOptions {
	set := func(v *float64, to float64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&o.Beta1, 0.9)
	set(&o.Beta2, 0.999)
	set(&o.EMA, 0.999)
	return o
}

// State is all that a Trainer carries from step to step: with it, training goes on
// as if it had not stopped. The slices are in the order of Graph.Params.
type State struct {
	Step                  int
	Params, Mean, Squares [][]float32
	EMA                   [][]float32
}

// NewState returns the state before the first step.
func NewState(params [][]float32) *State {
	zeros := func() [][]float32 {
		z := make([][]float32, len(params))
		for i := range z {
			z[i] = make([]float32, len(params[i]))
		}
		return z
	}
	s := &State{Params: clone(params), Mean: zeros(), Squares: zeros(), EMA: clone(params)}
	return s
}

// Clone returns a copy that shares nothing with s.
func (s *State) Clone() *State {
	return &State{s.Step, clone(s.Params), clone(s.Mean), clone(s.Squares), clone(s.EMA)}
}

func clone(x [][]float32) [][]float32 {
	c := make([][]float32, len(x))
	for i := range x {
		c[i] = append([]float32(nil), x[i]...)
	}
	return c
}

// GraphBackend is a Backend that runs and trains graphs.
type GraphBackend interface {
	Backend

	// Compile prepares g with parameters for forward runs. It copies both.
	Compile(g *Graph, params [][]float32) (Program, error)

	// Train prepares g for training from a state, which it copies.
	Train(g *Graph, s *State, o TrainOptions) (Trainer, error)
}

// Program is a Graph with its parameters on a backend. Its methods are safe for
// concurrent use.
type Program interface {
	// Run writes the output for each sample of b to dst, [Count, height, width,
	// channels] of the output. On a CPU samples run one after the other on the
	// caller's thread. Target and Weight of b are not looked at.
	Run(dst []float32, b *Batch) error
}

// Trainer changes the parameters of a Graph. It is for one goroutine. One that holds
// memory of a device is an io.Closer.
type Trainer interface {
	// Step runs the batch forward and backward and takes one step of the rate.
	// It returns the mean loss before the step and the norm of the gradient before
	// clipping. A loss or gradient that is not finite is an error, and nothing
	// changes.
	Step(b *Batch, rate float64) (loss, norm float64, err error)

	// Gradient returns the mean loss and its gradient, and changes nothing.
	Gradient(b *Batch) (loss float64, gradient [][]float32, err error)

	// State returns a copy of the present state.
	State() *State
}
