package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/pipeline"
)

func newStatusCmd() *cobra.Command {
	var where daemonAddress
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What the running daemon has in hand, what is stuck and why",
		Long: `Ask the running daemon how it is, what its destinations do and what became of
the last series. Exit code 0 means that it runs and receives images.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			url, err := where.base()
			if err != nil {
				return err
			}
			var answer struct {
				web.Status
				Series []pipeline.SeriesStatus `json:"series"`
			}
			if err := getJSON(cmd.Context(), url+"/readyz", &answer.Status); err != nil {
				return fmt.Errorf("status: %w", notRunning(url, err))
			}
			if err := getJSON(cmd.Context(), url+"/api/series", &answer.Series); err != nil {
				return fmt.Errorf("status: %w", err)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if err := e.Encode(answer); err != nil {
					return err
				}
			} else if err := printStatus(out, answer.Status, answer.Series); err != nil {
				return err
			}
			if !answer.Ready {
				return errors.New("status: images are not received: " + strings.Join(answer.Problems, "; "))
			}
			return nil
		},
	}
	where.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// daemonAddress is where the running daemon is asked.
type daemonAddress struct{ config, url string }

func (d *daemonAddress) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.config, "config", "", "configuration file, for its http.listen")
	cmd.Flags().StringVar(&d.url, "url", "http://"+daemon.DefaultConfig().HTTP.Listen, "address of the status page")
}

func (d *daemonAddress) base() (string, error) {
	if d.config == "" {
		url := strings.TrimSuffix(d.url, "/")
		if !strings.Contains(url, "://") {
			url = "http://" + url
		}
		return url, nil
	}
	cfg, err := daemon.LoadConfig(d.config)
	if err != nil {
		return "", err
	}
	return "http://" + cfg.HTTP.Listen, nil
}

func notRunning(url string, err error) error {
	return fmt.Errorf("no denoised answers at %s: %w (is it running? systemctl status denoised; if its http.listen is another, give --config or --url)", url, err)
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

func getJSON(ctx context.Context, url string, to any) error {
	return ask(ctx, http.MethodGet, url, to)
}

// ask sends a request to the daemon and reads the JSON of its answer.
func ask(ctx context.Context, method, url string, to any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// /readyz answers with its reasons under 503.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return fmt.Errorf("%s %s: %s", method, url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(to); err != nil {
		return fmt.Errorf("%s %s: the answer is not that of denoised: %w", method, url, err)
	}
	return nil
}

// plain makes text of other machines, as an AE title, safe for a terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// highState says what the lane of the full method does.
func highState(h web.High) string {
	switch {
	case h.NotPossible != "":
		return "not possible: " + plain(h.NotPossible)
	case h.Now == nil:
		return ""
	case h.Now.Paused:
		return "waits for denoise"
	}
	return "at work"
}

// highProgress says in a few words where the full method of a series is.
func highProgress(h *pipeline.HighStatus) string {
	text := strings.ReplaceAll(h.State, "-", " ")
	if h.Images > 0 && h.State != pipeline.HighNotPossible {
		text += fmt.Sprintf(" %d/%d", h.Done, h.Images)
	}
	if r := h.Remarks(); r != "" {
		text += ", " + r
	}
	if n := h.Now; n != nil && n.Steps > 0 {
		text += fmt.Sprintf(", step %d/%d", n.Step, n.Steps)
	}
	if h.Failed > 0 && (h.State == pipeline.HighFailed || h.State == pipeline.HighIncomplete) {
		text += fmt.Sprintf(", %d FAILED", h.Failed)
	}
	return text
}

func printStatus(out io.Writer, s web.Status, series []pipeline.SeriesStatus) error {
	state := "images are received"
	if !s.Ready {
		state = "IMAGES ARE NOT RECEIVED"
	}
	model := s.Model
	if s.RadiographModel != "" {
		model += ", of radiographs " + s.RadiographModel
	}
	fmt.Fprintf(out, "%s (version %s, model %s, up %v, disk %.0f %% full)\n", state, s.Version, model,
		time.Since(s.Started).Round(time.Second), 100*s.DiskUsed)
	for _, p := range s.Problems {
		fmt.Fprintf(out, "  ! %s\n", p)
	}
	if s.Worker != nil {
		fmt.Fprintf(out, "GPU: %s\n", plain(s.Worker.String()))
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	age := func(q web.Queue) string {
		if q.Waiting == 0 {
			return ""
		}
		return (time.Duration(q.OldestSeconds) * time.Second).String()
	}
	fmt.Fprintf(t, "\nQUEUE\tSTATE\tWAITING\tOLDEST\n")
	fmt.Fprintf(t, "denoise\t\t%d\t%s\n", s.Denoise.Waiting, age(s.Denoise))
	fmt.Fprintf(t, "full method (high)\t%s\t%d\t%s\n", highState(s.High), s.High.Waiting, age(s.High.Queue))
	for _, d := range s.Destinations {
		breaker := d.Breaker
		switch breaker {
		case "":
			breaker = "not used yet"
		case "closed": // the breaker's word; a person would read the opposite
			breaker = "in use"
		case "loop":
			breaker = "LEADS BACK HERE"
		case "half-open":
			breaker = "being tried"
		case "open":
			breaker = "NOT REACHABLE"
		}
		fmt.Fprintf(t, "%s (%s at %s)\t%s\t%d\t%s\n", d.Name, d.AETitle, d.Address, breaker, d.Waiting, age(d.Queue))
	}
	fmt.Fprintf(t, "\nLAST IMAGE\tFROM\tSTATE\tQUALITY\tRECEIVED\tDENOISED\tAS IS\tFAILED\tFORWARDED\tSERIES\n")
	for i, r := range series {
		if i == 20 {
			fmt.Fprintf(t, "(%d more)\n", len(series)-i)
			break
		}
		var forwarded []string
		for _, d := range r.Destinations {
			text := fmt.Sprintf("%s %d", d.Name, d.Stored)
			if d.Queued > 0 {
				text += fmt.Sprintf("+%d", d.Queued)
			}
			if n := d.Refused + d.Damaged; n > 0 {
				text += fmt.Sprintf(" (%d NOT TAKEN)", n)
			}
			forwarded = append(forwarded, text)
		}
		denoised := strconv.FormatInt(r.Denoised, 10)
		if text := r.Remarks(); text != "" {
			denoised += " (" + text + ")"
		}
		quality := string(r.Quality)
		if r.High != nil {
			quality += " (" + highProgress(r.High) + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%s\t%s\n", r.LastAt.Local().Format("01-02 15:04:05"), plain(r.Calling), r.State, quality,
			r.Received, denoised, r.Passed, r.Failed+r.Lost+r.Conflict, strings.Join(forwarded, ", "), plain(r.UID))
	}
	if len(series) == 0 {
		fmt.Fprintln(t, "(none)")
	}
	if err := t.Flush(); err != nil || len(s.Errors) == 0 {
		return err
	}
	fmt.Fprintf(out, "\nLAST WARNINGS AND ERRORS (all: journalctl -u denoised -p warning)\n")
	for _, l := range s.Errors[:min(len(s.Errors), 5)] {
		times := ""
		if l.Times > 1 {
			times = fmt.Sprintf(" (%d times)", l.Times)
		}
		fmt.Fprintf(out, "%s  %s  %s%s  %s\n", l.Time.Local().Format("01-02 15:04:05"), l.Level, plain(l.Message), times, plain(l.Detail))
	}
	return nil
}
