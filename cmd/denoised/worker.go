package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/remote"
)

func newWorkerCmd() *cobra.Command {
	var (
		name   string
		socket int
	)
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Compute for the daemon, which starts it (not for people)",
		Long: `Compute for the daemon, on a GPU.

The daemon starts this by itself and talks to it over a socket; there is nothing
that a person could do with it. It ends with the daemon. To see whether a GPU
can be used: denoised check.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == backendAuto {
				return usagef("worker: --backend auto; choose cpu or cuda")
			}
			if err := checkBackend("worker", name); err != nil {
				return err
			}
			conn, err := remote.Inherited(socket)
			if err != nil {
				return fmt.Errorf("worker: %w: it is started by the daemon, not by hand", err)
			}
			defer conn.Close()
			// If memory runs out the kernel is to end this process before the daemon.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) // where there is such a thing
			b, _, err := openBackend(name, true, cpu.SelectInference)
			if err != nil {
				if told := remote.Refuse(conn, err); told != nil {
					return fmt.Errorf("worker: %w", errors.Join(err, told))
				}
				return &reportedError{err.Error()}
			}
			b.info.Version = thisBuild().Version
			if err := remote.Serve(cmd.Context(), conn, b.GraphBackend, b.info); err != nil {
				_ = b.close() // its errors follow from the first one
				return err
			}
			return b.close()
		},
	}
	cmd.Flags().StringVar(&name, "backend", backendCUDA, "cuda or cpu")
	cmd.Flags().IntVar(&socket, "socket", 3, "descriptor of the socket to the daemon")
	return cmd
}
