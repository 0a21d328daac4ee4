package journal

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// SQL is text that no compiler reads: each word that it compares a column with is one that somebody writes there.
func TestWordsInSQL(t *testing.T) {
	words := func(list ...any) (out []string) {
		for _, w := range list {
			switch w := w.(type) {
			case state.Stage:
				out = append(out, string(w))
			case state.Delivery:
				out = append(out, string(w))
			case state.Series:
				out = append(out, string(w))
			case state.Reason:
				out = append(out, string(w))
			case state.Quality:
				out = append(out, string(w))
			case state.Channel:
				out = append(out, string(w))
			case spool.Kind:
				out = append(out, string(w))
			default:
				t.Fatalf("%v is no word of a column", w)
			}
		}
		return out
	}
	known := map[string][]string{
		"stage": words(state.Queued, state.Denoised, state.Passed, state.Failed, state.Conflict, state.Made,
			state.Lost),
		"state": words(state.DeliveryQueued, state.DeliveryStored, state.DeliveryRefused, state.DeliveryDamaged,
			state.SeriesReceiving, state.SeriesComplete, state.SeriesIncomplete),
		"reason": words(state.Reason(""), state.ReasonOff, state.ReasonDamaged, state.ReasonLost,
			state.ReasonNotPossible,
			state.ReasonStopped, state.ReasonSize, state.ReasonNotNumber, state.ReasonRange, state.ReasonConstant),
		"quality": words(state.Off, state.Fast, state.High),
		"channel": words(state.ChannelFlag, state.ChannelAE, state.ChannelRule, state.ChannelDefault),
		"kind":    words(spool.Original, spool.Derived),
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	compared := regexp.MustCompile(`\b(stage|state|reason|quality|channel|kind)\s*(?:=|<>|IN \()\s*((?:'[^']*',?)+)`)
	n := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range compared.FindAllStringSubmatch(string(text), -1) {
			for w := range strings.SplitSeq(strings.Trim(m[2], ","), ",") {
				n++
				if !slices.Contains(known[m[1]], strings.Trim(w, "'")) {
					t.Errorf("%s: %s: no such %s", f, m[0], m[1])
				}
			}
		}
		if regexp.MustCompile(`\b(stage|state|reason)\s+LIKE\b`).Match(text) {
			t.Errorf("%s decides by how a word is spelled", f)
		}
	}
	if n < 50 {
		t.Errorf("only %d words found", n)
	}
}
