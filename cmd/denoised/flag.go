package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/pipeline"
)

func newFlagCmd() *cobra.Command {
	var where daemonAddress
	var quality, why string
	cmd := &cobra.Command{
		Use:   "flag SERIES_UID",
		Short: "Say in what quality a series is wanted, before, while or after it comes",
		Long: `Say in what quality a series is wanted. That wins over the called AE title and
the rules, for images that are here and for those that come later.

  high   the full method, once the series is complete: a second derived series.
         Also to try again what failed in it
  fast   no full method; one that is not finished is called off
  off    nothing more is made of it

The reason is kept with the series and shown beside it. It is no place for a
patient's name. "denoised status" lists the series.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q := pipeline.Quality(quality); q != pipeline.High && q != pipeline.Fast && q != pipeline.Off {
				return usagef("flag: --quality %q; choose high, fast or off", quality)
			}
			base, err := where.base()
			if err != nil {
				return err
			}
			var status web.Status
			if err := ask(cmd.Context(), http.MethodGet, base+"/readyz", &status); err != nil {
				return fmt.Errorf("flag: %w", notRunning(base, err))
			}
			var got pipeline.Flagged
			wish := web.Wish{Quality: pipeline.Quality(quality), Why: why, By: author()}
			if err := post(cmd.Context(), base+"/api/series/"+url.PathEscape(args[0])+"/flag", wish, &got); err != nil {
				return fmt.Errorf("flag series %s: %w", plain(args[0]), err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), flagText(got))
			return nil
		},
	}
	where.flags(cmd)
	cmd.Flags().StringVar(&quality, "quality", string(pipeline.High), "high, fast or off")
	cmd.Flags().StringVar(&why, "why", "", fmt.Sprintf("reason, at most %d characters", pipeline.MaxWhy))
	return cmd
}

// flagText says what a flag led to.
func flagText(f pipeline.Flagged) string {
	if !f.Known {
		return fmt.Sprintf("%s: %s, once its first image comes; forgotten at %s if none does", plain(f.Series), f.Quality, f.Until.Local().Format(time.DateTime))
	}
	text := fmt.Sprintf("%s: %s", plain(f.Series), f.Quality)
	if f.Quality == pipeline.High || f.High > 0 {
		text += fmt.Sprintf("; full method for %d of %d images: %s", f.High, f.Images, strings.ReplaceAll(f.State, "-", " "))
		if f.Detail != "" {
			text += ", " + plain(f.Detail)
		}
	}
	if f.Purged > 0 {
		text += fmt.Sprintf(" (%d were delivered and removed)", f.Purged)
	}
	return text
}

// author is who sets the flag, as far as this program can know.
func author() string {
	who := "command line"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name := []rune(plain(u.Username))
		who += ", " + string(name[:min(len(name), 40)])
	}
	return who
}

// post sends a JSON body to the daemon and reads the JSON of its answer. An
// answer that says what is wrong becomes the error.
func post(ctx context.Context, url string, body, to any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode >= 300 {
		var problem struct {
			Error string `json:"error"`
		}
		if err := answer.Decode(&problem); err != nil || problem.Error == "" {
			return fmt.Errorf("POST %s: %s", url, resp.Status)
		}
		return fmt.Errorf("%s", plain(problem.Error))
	}
	if err := answer.Decode(to); err != nil {
		return fmt.Errorf("POST %s: the answer is not that of denoised: %w", url, err)
	}
	return nil
}
