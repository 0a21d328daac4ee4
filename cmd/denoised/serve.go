package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/diffdenoise/denoised/daemon"
)

func newServeCmd() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the daemon",
		Long: `Run the daemon until SIGTERM or Ctrl-C. It then takes no new images, finishes
those in hand and ends; a second signal ends it at once. Either way nothing that
was accepted is lost.

A changed configuration file is noticed; SIGHUP reads it at once. The log goes
to standard error, one JSON object a line, or as text on a terminal.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemon.LoadConfig(config)
			if err != nil {
				return err
			}
			form := daemon.LogJSON
			switch {
			case toJournal():
				form = daemon.LogJournal
			case term.IsTerminal(int(os.Stderr.Fd())):
				form = daemon.LogText
			}
			log, level, err := daemon.NewLogger(cmd.ErrOrStderr(), form, cfg.Log.Level)
			if err != nil {
				return err
			}
			b := thisBuild()
			log.Info("denoised starts; research use only, not a medical device", zap.String("version", b.Version), zap.String("revision", b.Revision),
				zap.String("config", cfg.Path), zap.Int64("memory_limit", daemon.LimitMemory()))
			d, err := daemon.New(cfg, daemon.WithLogger(log, level), daemon.WithVersion(b.Version), daemon.WithWorker(workerProgram()))
			if err != nil {
				return err
			}
			defer onHangup(d.Reload)()
			err = d.Run(cmd.Context())
			_ = log.Sync() // standard error may not know how
			return err
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file (required)")
	return required(cmd, "config")
}

// toJournal tells whether systemd's journal reads standard error.
func toJournal() bool {
	yes, err := journal.StderrIsJournalStream()
	return yes && err == nil
}

// required marks flags that must be given.
func required(cmd *cobra.Command, flags ...string) *cobra.Command {
	for _, f := range flags {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(errors.Join(errors.New("flag "+f), err)) // a flag that the command does not have
		}
	}
	return cmd
}

// onHangup calls f at each SIGHUP until stop.
func onHangup(f func()) (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		defer close(done)
		for range signals {
			f()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}
