//go:build unix

// Command bench compares the networks of package cpu with ONNX Runtime and PyTorch: the
// same network, the same image, one thread, one run of each after the other. It counts
// processor time, so that it holds on a machine that does other work, and prints a page
// of Markdown. `make bench-network` gets what it needs.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

func main() {
	var b bench
	flag.StringVar(&b.modules, "modules", "dist/bench/node_modules", "node_modules with onnxruntime-node")
	flag.StringVar(&b.sources, "sources", "kernels/cpu/bench", "where the scripts of the peers are")
	flag.IntVar(&b.size, "size", 512, "width and height of the image, even")
	flag.IntVar(&b.rounds, "rounds", 9, "runs of each, of which the median counts")
	out := flag.String("out", "", "file for the page, default standard output")
	flag.Parse()
	page, err := b.run()
	if err == nil && *out != "" {
		err = os.WriteFile(*out, []byte(page), 0o644)
	} else if err == nil {
		fmt.Print(page)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	modules, sources string
	size, rounds     int

	folder   string // of what the peers read
	ort      *peer
	torch    *peer
	versions [2]string
}

// candidate is one way to run a network.
type candidate struct {
	name   string
	run    func() (ms float64, err error)
	output func() ([]float32, error) // of the last run
	ms     []float64
	off    float64 // relative error of the predicted noise
}

func (b *bench) run() (string, error) {
	debug.SetGCPercent(-1)
	if b.size < 2 || b.size%2 != 0 || b.rounds < 1 {
		return "", fmt.Errorf("size %d is not even or rounds %d are none", b.size, b.rounds)
	}
	var err error
	if b.folder, err = os.MkdirTemp("", "bench"); err != nil {
		return "", err
	}
	defer os.RemoveAll(b.folder)
	modules, err := filepath.Abs(b.modules)
	if err != nil {
		return "", err
	}
	y, sigma := b.image()
	for name, v := range map[string][]float32{"y": y, "sigma": sigma} {
		if err := b.write(name, v); err != nil {
			return "", err
		}
	}
	size := fmt.Sprint(b.size)
	node := exec.Command("node", filepath.Join(b.sources, "ort.js"), b.folder, size)
	node.Env = append(os.Environ(), "NODE_PATH="+modules)
	if b.ort, err = start(node); err != nil {
		return "", err
	}
	defer b.ort.stop()
	python := exec.Command("/usr/bin/python3", filepath.Join(b.sources, "torch_peer.py"), b.folder, size)
	python.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1")
	if b.torch, err = start(python); err != nil {
		return "", err
	}
	defer b.torch.stop()

	var tables []string
	for _, n := range []struct{ channels, blocks int }{{32, 8}, {16, 16}} {
		net := kernelstest.RandomNet(1, n.channels, n.blocks)
		table, err := b.compare(net, y, sigma)
		if err != nil {
			return "", fmt.Errorf("%d channels, %d blocks: %w", n.channels, n.blocks, err)
		}
		tables = append(tables, fmt.Sprintf("## %d channels, %d blocks, %.1f GFLOP\n\n%s", n.channels, n.blocks,
			net.FLOP(b.size, b.size)/1e9, table))
	}
	return b.page(tables), nil
}

// image is a smooth picture with noise.
func (b *bench) image() (y, sigma []float32) {
	rng := rand.New(rand.NewPCG(1, 2))
	for r := range b.size {
		for c := range b.size {
			smooth := 0.5 + 0.3*math.Sin(float64(r)/40)*math.Cos(float64(c)/30)
			y = append(y, float32(smooth+0.03*rng.NormFloat64()))
			sigma = append(sigma, 0.03)
		}
	}
	return y, sigma
}

func (b *bench) compare(net *chain.Net, y, sigma []float32) (string, error) {
	exact, err := cpu.New(cpu.Go)
	if err != nil {
		return "", err
	}
	loaded, err := exact.Load(net.Graph())
	if err != nil {
		return "", err
	}
	out := make([]float32, len(y))
	layers, err := loaded.Trace(out, y, sigma, b.size, b.size)
	if err != nil {
		return "", err
	}
	noise := make([]float64, len(y))
	for i := range noise {
		noise[i] = float64(y[i]) - float64(out[i])
	}

	list, err := b.ours(net, y, sigma)
	if err != nil {
		return "", err
	}
	input := extentOf(y)
	input.high = max(input.high, kernels.SigmaScale*slices.Max(sigma))
	extents := []extent{input}
	for _, l := range layers {
		extents = append(extents, extentOf(l))
	}
	peers, err := b.peers(net, extents)
	if err != nil {
		return "", err
	}
	list = append(list, peers...)

	for round := range b.rounds + 1 { // the first one warms up
		for _, c := range list {
			ms, err := c.run()
			if err != nil {
				return "", fmt.Errorf("%s: %w", c.name, err)
			}
			if round > 0 {
				c.ms = append(c.ms, ms)
				continue
			}
			got, err := c.output()
			if err != nil {
				return "", fmt.Errorf("%s: %w", c.name, err)
			}
			predicted := make([]float32, len(got))
			for i, v := range got {
				predicted[i] = y[i] - v
			}
			if c.off = kernelstest.RelativeError(predicted, noise); !(c.off < 0.2) {
				return "", fmt.Errorf("%s computes something else: the noise is off by %.2g", c.name, c.off)
			}
		}
	}
	return table(list), nil
}

// ours are the instruction sets of this machine.
func (b *bench) ours(net *chain.Net, y, sigma []float32) (list []*candidate, err error) {
	for _, name := range cpu.ISAs() {
		if name == cpu.Go {
			continue
		}
		backend, err := cpu.New(name)
		if err != nil {
			return nil, err
		}
		n, err := backend.Load(net.Graph())
		if err != nil {
			return nil, err
		}
		dst := make([]float32, len(y))
		list = append(list, &candidate{
			name: backend.Name(),
			run: func() (float64, error) {
				begin, err := processorTime()
				if err != nil {
					return 0, err
				}
				if err := n.Forward(dst, y, sigma, b.size, b.size); err != nil {
					return 0, err
				}
				end, err := processorTime()
				return 1000 * (end - begin), err
			},
			output: func() ([]float32, error) { return dst, nil },
		})
	}
	return list, nil
}

// peers are ONNX Runtime and PyTorch.
func (b *bench) peers(net *chain.Net, extents []extent) (list []*candidate, err error) {
	type layer struct {
		In   int  `json:"in"`
		Out  int  `json:"out"`
		ReLU bool `json:"relu"`
		Skip int  `json:"skip"`
	}
	var layers []layer
	for k := range net.Layers {
		l := &net.Layers[k]
		layers = append(layers, layer{l.In, l.Out, l.ReLU, l.Skip})
		if err := b.write(fmt.Sprint("w", k), l.Weights); err != nil {
			return nil, err
		}
		if err := b.write(fmt.Sprint("b", k), l.Bias); err != nil {
			return nil, err
		}
	}
	description, err := json.Marshal(layers)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"fp32.onnx":   onnx(net, int64(b.size), nil),
		"int8.onnx":   onnx(net, int64(b.size), extents),
		"layers.json": description,
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(b.folder, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	for _, c := range []struct {
		peer       *peer
		name, file string
		label      string
	}{
		{b.ort, "fp32", "fp32.onnx", "ONNX Runtime, float32"},
		{b.ort, "int8", "int8.onnx", "ONNX Runtime, int8 (QDQ, static)"},
		{b.torch, "fp32", "layers.json", "PyTorch, float32"},
		{b.torch, "fp32-nhwc", "layers.json", "PyTorch, float32, channels last"},
		{b.torch, "bf16-nhwc", "layers.json", "PyTorch, bf16, channels last"},
	} {
		a, err := c.peer.ask("load", c.name, filepath.Join(b.folder, c.file))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.label, err)
		}
		if c.peer == b.ort {
			b.versions[0] = a.Version
		} else {
			b.versions[1] = a.Version
		}
		list = append(list, &candidate{
			name: c.label,
			run: func() (float64, error) {
				a, err := c.peer.ask("run", c.name)
				return a.MS, err
			},
			output: func() ([]float32, error) { return b.read("out") },
		})
	}
	return list, nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func table(list []*candidate) string {
	reference := 0.0
	for _, c := range list {
		if strings.HasSuffix(c.name, "Runtime, float32") {
			reference = median(c.ms)
		}
	}
	var s strings.Builder
	s.WriteString("| | ms (median) | fastest | times ONNX Runtime float32 | predicted noise off by |\n|---|---|---|---|---|\n")
	for _, c := range list {
		fmt.Fprintf(&s, "| %s | %.1f | %.1f | %.2f | %.1e |\n", c.name, median(c.ms), slices.Min(c.ms),
			reference/median(c.ms), c.off)
	}
	return s.String()
}

func (b *bench) page(tables []string) string {
	var s strings.Builder
	fmt.Fprintf(&s, `# How fast are the networks on one core, and how fast elsewhere?

Written by `+"`make bench-network`"+`: one %d×%d slice, one thread, random weights, %d rounds of one run each in turn.
Processor time, so other work on the machine counts little; compare the ratios.
%s, ONNX Runtime %s, PyTorch %s.

`, b.size, b.size, b.rounds, processor(), b.versions[0], b.versions[1])
	s.WriteString(strings.Join(tables, "\n"))
	return s.String()
}

// processor names that of this machine, with the flags that matter here.
func processor() string {
	name := runtime.GOARCH
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return name
	}
	field := func(key string) string {
		for line := range strings.Lines(string(info)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	return fmt.Sprintf("%s (family %s, model %s)", field("model name"), field("cpu family"), field("model"))
}

func (b *bench) write(name string, v []float32) error {
	return os.WriteFile(filepath.Join(b.folder, name), littleEndian(v), 0o600)
}

func (b *bench) read(name string) ([]float32, error) {
	raw, err := os.ReadFile(filepath.Join(b.folder, name))
	if err != nil {
		return nil, err
	}
	if len(raw) != 4*b.size*b.size {
		return nil, fmt.Errorf("output is %d bytes, want %d", len(raw), 4*b.size*b.size)
	}
	return fromLittleEndian(raw), nil
}

// processorTime is the seconds that this process has computed.
func processorTime() (float64, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("ask for the processor time: %w", err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9, nil
}

// peer is a process that runs networks when it is asked.
type peer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
}

type answer struct {
	MS      float64 `json:"ms"`
	Version string  `json:"version"`
	Error   string  `json:"error"`
}

func start(c *exec.Cmd) (*peer, error) {
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return &peer{c, in, bufio.NewScanner(out)}, nil
}

func (p *peer) ask(words ...string) (answer, error) {
	var a answer
	if _, err := fmt.Fprintln(p.in, strings.Join(words, " ")); err != nil {
		return a, fmt.Errorf("ask %s: %w", p.command.Path, err)
	}
	if !p.out.Scan() {
		return a, fmt.Errorf("%s has ended: %v", p.command.Path, p.out.Err())
	}
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		return a, fmt.Errorf("answer %.200q of %s: %w", p.out.Text(), p.command.Path, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", p.command.Path, a.Error)
	}
	return a, nil
}

// stop ends the process, which ends with its input.
func (p *peer) stop() {
	p.in.Close()
	_ = p.command.Wait()
}
