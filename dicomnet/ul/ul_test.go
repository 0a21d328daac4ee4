package ul

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata from what the machine does")

// names maps the words of a transcript to events.
var names = func() map[string]EventKind {
	m := map[string]EventKind{}
	for k := AssociateRequest; k <= InvalidPDU; k++ {
		_, words, _ := strings.Cut(k.String(), "(")
		m[strings.TrimSuffix(words, ")")] = k
	}
	return m
}()

// replay plays the events of a transcript and returns it as it should be. A
// line "> EVENT [refuse] [reason N]" is an event; lines below it are what the
// machine wants done and where it is then. Lines with # are comments.
func replay(t *testing.T, text string) string {
	var out strings.Builder
	m := New()
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			words := strings.TrimPrefix(line, "> ")
			var ev Event
			if before, n, ok := strings.Cut(words, " reason "); ok {
				v, err := strconv.Atoi(n)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				words, ev.Reason = before, byte(v)
			}
			words, ev.Refuse = strings.CutSuffix(words, " refuse")
			kind, ok := names[words]
			if !ok {
				t.Fatalf("%q names no event", line)
			}
			ev.Kind = kind
			effects, err := m.Step(ev)
			if err != nil {
				fmt.Fprintf(&out, "  error: %v\n", err)
			}
			for _, e := range effects {
				fmt.Fprintf(&out, "  %v", e.Kind)
				if e.Kind == SendAbort {
					fmt.Fprintf(&out, " %d/%d", e.Source, e.Reason)
				}
				fmt.Fprintln(&out)
			}
			fmt.Fprintf(&out, "  = %v\n", m.State())
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if got == string(want) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("the machine does:\n%s\nthe transcript says:\n%s", got, want)
		})
	}
}

// Any sequence of events: no panic, no state outside the table, an error
// changes nothing, and every abort that is sent leads to Sta13.
func TestAnySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New()
		for _, k := range rapid.SliceOfN(rapid.Uint8Range(0, 20), 1, 60).Draw(t, "events") {
			before := m.State()
			effects, err := m.Step(Event{Kind: EventKind(k), Refuse: rapid.Bool().Draw(t, "refuse")})
			if m.State() < Sta1 || m.State() > Sta13 {
				t.Fatalf("state %v", m.State())
			}
			if err != nil && (m.State() != before || effects != nil) {
				t.Fatalf("%v changed %v to %v", err, before, m.State())
			}
			for _, e := range effects {
				if e.Kind == SendAbort && m.State() != Sta13 {
					t.Fatalf("an abort was sent, but the state is %v", m.State())
				}
				if e.Kind == CloseTransport && m.State() != Sta1 {
					t.Fatalf("the transport was closed, but the state is %v", m.State())
				}
			}
		}
	})
}

func TestStepDoesNotAllocate(t *testing.T) {
	m := &Machine{state: Sta6}
	if n := testing.AllocsPerRun(1000, func() { m.Step(Event{Kind: DataReceived}) }); n != 0 {
		t.Errorf("%v allocations per P-DATA-TF", n)
	}
}

func BenchmarkStepData(b *testing.B) {
	m := &Machine{state: Sta6}
	for b.Loop() {
		m.Step(Event{Kind: DataReceived})
	}
}
