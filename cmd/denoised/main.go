// Command denoised receives MR series from a scanner, denoises them and sends
// them on. Each verb is a file of its own; root.go lists them. What they do is in
// the packages; a reader of this one needs newRootCmd and run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/diffdenoise/denoised/pipeline"
)

func main() { os.Exit(realMain()) }

func realMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks to finish; from then on a second one ends the process
	// at once, as the system does it.
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitNewer  = 78 // EX_CONFIG of sysexits.h: starting again does not help, and systemd does not
)

// run runs one command line and returns the exit code. Errors are one line on
// errOut.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	root := newRootCmd()
	entered := prepare(root)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // several errors in one have a line each
	mark := ""
	if toJournal() {
		mark = "<3>" // an error, as sd-daemon(3) has it
	}
	var usage *usageError
	var quiet *reportedError
	switch {
	case errors.As(err, &usage) || !*entered:
		fmt.Fprintf(errOut, mark+"denoised: %v (see %s --help)\n", text, cmd.CommandPath())
		return exitUsage
	case errors.As(err, &quiet):
	default:
		fmt.Fprintf(errOut, mark+"denoised: %v\n", text)
	}
	if errors.Is(err, pipeline.ErrNewerJournal) {
		return exitNewer
	}
	return exitFailed
}

// usageError is a command line that cannot be meant.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// reportedError is a failure that the command's own output has told already.
type reportedError struct{ text string }

func (e *reportedError) Error() string { return e.text }
