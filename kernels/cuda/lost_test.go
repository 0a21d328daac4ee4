//go:build cuda && linux && emulated

package cuda

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// What goes wrong with the emulated device is said once for a process, so such tests are tasks of
// processes of their own.
const taskVariable = "CUDA_TEST_TASK"

var tasks = map[string]func() error{"lost": lost, "lost in training": lostInTraining}

func runTask(t *testing.T, task, device string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), taskVariable+"="+task, "DENOISED_EMU="+device)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", task, err, out)
	}
}

// emulated skips a test that only the emulated driver can run.
func emulated(t *testing.T, b *Backend) {
	t.Helper()
	if !strings.HasPrefix(b.info.Name, "Emulated") {
		t.Skip("needs the emulated driver")
	}
}

// TestLost: after a launch that has cost the context, everything says so.
func TestLost(t *testing.T) {
	emulated(t, open(t, Options{}))
	runTask(t, "lost", "fail_launch_after=20:700")
}

func lost() error {
	b, err := Open(0, Options{})
	if err != nil {
		return err
	}
	net := kernelstest.RandomNet(1, 8, 1)
	n, err := b.Load(net.Graph())
	if err != nil {
		return err
	}
	g, batch := sampled(8, 8)
	c, err := b.Compile(g, g.Init(1))
	if err != nil {
		return err
	}
	m := newImage(1, 20, 20)
	for range 30 {
		if _, err = m.forward(n); err != nil {
			break
		}
	}
	whole := *batch
	whole.Inputs = [][]float32{make([]float32, 64), batch.Inputs[1], make([]float32, 3)}
	pixels := make([]float32, 64)
	_, later := m.forward(n)
	_, traced := n.Trace(m.y, m.y, m.sigma, m.width, m.height)
	_, loaded := b.Load(net.Graph())
	_, compiled := b.Compile(g, g.Init(1))
	conv := &net.Layers[1].Conv
	for what, err := range map[string]error{
		"the call that lost it": err,
		"Forward":               later,
		"Trace":                 traced,
		"Load":                  loaded,
		"Compile":               compiled,
		"Run":                   c.Run(pixels, &whole),
		"SamplePair":            c.(kernels.Sampler).SamplePair(pixels, make([]float32, 64), make([]float32, 64), batch, sampleSteps(1), nil),
		"Conv3x3":               b.Conv3x3(make([]float32, 32), make([]float32, 32), nil, 2, 2, conv),
	} {
		if !errors.Is(err, kernels.ErrDevice) {
			return fmt.Errorf("%s: error is %v, want %v", what, err, kernels.ErrDevice)
		}
	}
	return nil
}
