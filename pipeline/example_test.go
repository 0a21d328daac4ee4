package pipeline_test

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/diffdenoise/denoised/pipeline"
)

// A pipeline that only keeps: no denoiser, no destination.
func Example() {
	dir, err := os.MkdirTemp("", "state")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	p, err := pipeline.Open(context.Background(), pipeline.Options{StateDir: dir, DiskWarn: 0.98, DiskRefuse: 0.99})
	if err != nil {
		panic(err)
	}
	defer p.Close()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()

	in := pipeline.Incoming{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2.3", TransferSyntaxUID: "1.2.840.10008.1.2.1", CallingAETitle: "MR1", CalledAETitle: "DENOISE"}
	fmt.Println(p.Receive(ctx, in, strings.NewReader("not even a data set")))
	list, err := p.Series(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println(len(list), list[0].Passed)
	stop()
	fmt.Println(<-done)
	// Output:
	// <nil>
	// 1 1
	// <nil>
}
