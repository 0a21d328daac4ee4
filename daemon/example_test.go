package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diffdenoise/denoised/daemon"
)

// A daemon on free ports, started and stopped.
func Example() {
	dir, err := os.MkdirTemp("", "denoised-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	cfg := daemon.DefaultConfig()
	cfg.StateDir = filepath.Join(dir, "state")
	cfg.DICOM.Listen, cfg.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0"

	d, err := daemon.New(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Ready():
		fmt.Println("scanners may send to", d.DICOMAddr().Network())
	case err := <-ended:
		fmt.Println(err)
	}
	cancel()
	fmt.Println("ended:", <-ended)
	// Output:
	// scanners may send to tcp
	// ended: <nil>
}

// A mistake in a configuration says where it is and what to write.
func ExampleLoadConfig() {
	dir, err := os.MkdirTemp("", "denoised-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "denoised.yaml")
	if err := os.WriteFile(path, []byte("series:\n  quiet: 20 seconds\n"), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	_, err = daemon.LoadConfig(path)
	var mistake *daemon.ConfigError
	if errors.As(err, &mistake) {
		fmt.Printf("line %d, %s: %s: %s\n", mistake.Line, mistake.Key, mistake.Problem, mistake.Fix)
	}
	// Output:
	// line 2, series.quiet: "20 seconds" is not a time: write it as 500ms, 20s, 5m or 72h
}
