package train

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/chart"
	"github.com/diffdenoise/denoised/models/store"
)

// Report is what a training did, for a person.
type Report struct {
	Program string // version
	Preset  string
	Seed    uint64
	Began   time.Time
	Seconds float64 // of computing, over all runs
	Summary Summary
	// Card is that of the model, nil if there is none yet.
	Card    *store.Card
	Entries []Entry // of the log
	// Examples are slices of the validation, before and after.
	Examples []Example
}

// Example is a slice of the validation, all in its scale.
type Example struct {
	Source        string
	Index         int
	Width, Height int
	Before, After []float32
}

// grid is a table of a report.
type grid struct {
	Title string
	Head  []string
	Lines [][]string
}

// picture is a PNG of a report.
type picture struct {
	Name, Title string
	content     []byte
}

// URL is the picture itself, so that the page is one file.
func (p picture) URL() template.URL {
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(p.content))
}

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.New("report").Parse(reportHTML))

// maxListed is how many skips a report lists.
const maxListed = 200

// Write makes report.html, which holds its pictures, and report.md with the
// pictures beside it, in a folder that must be there. Each file is replaced whole.
func (r *Report) Write(dir string) error {
	pictures, err := r.pictures()
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	var page bytes.Buffer
	err = reportPage.Execute(&page, struct {
		Title    string
		About    []string
		Grids    []grid
		Pictures []picture
	}{r.title(), r.about(), r.grids(), pictures})
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	files := append(slices.Clone(pictures),
		picture{Name: "report.md", content: r.markdown(pictures)}, picture{Name: "report.html", content: page.Bytes()})
	for _, f := range files {
		err := atomicfile.Write(filepath.Join(dir, f.Name), 0o644, func(w *os.File) error {
			_, err := w.Write(f.content)
			return err
		})
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

func (r *Report) title() string {
	if r.Card == nil {
		return "Training, not finished"
	}
	return "Training of " + r.Card.Name + " " + r.Card.Version
}

func (r *Report) about() []string {
	list := []string{fmt.Sprintf("Preset %s, seed %d, denoised %s, begun %s, %s of computing.", r.Preset, r.Seed, r.Program,
		r.Began.UTC().Format(time.DateTime+" MST"), duration(r.Seconds))}
	if r.Card != nil {
		list = append(list, r.Card.Training.Method)
		if r.Card.Training.Noise != "" {
			list = append(list, r.Card.Training.Noise)
		}
	}
	return append(list, "Scores are on slices that were not trained on, on a scale where 1 is the 99.9th percentile of the volume. For research use. Not a medical device.")
}

func duration(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

// grids are the tables.
func (r *Report) grids() []grid {
	s := &r.Summary
	list := []grid{{"Data", []string{"what", ""}, [][]string{
		{"slices to train on", strconv.Itoa(s.Train)},
		{"slices for validation", strconv.Itoa(s.Validation)},
		{"told apart by", s.Split},
		{"volumes", strconv.Itoa(s.Volumes)},
		{"subjects", strconv.Itoa(s.Subjects)},
		{"zero-filled slices, used as measured", strconv.Itoa(s.Cropped)},
		{"slices without noise that can be measured", strconv.Itoa(s.NoNoise)},
		{"median noise, share of the scale", strconv.FormatFloat(s.Noise, 'f', 4, 64)},
		{"left out for the memory limit", strconv.Itoa(s.Left)},
		{"fingerprint", s.Fingerprint},
	}}}
	if r.Card != nil && len(r.Card.Training.Stages) > 0 {
		g := grid{"Networks", []string{"network", "architecture", "parameters", "steps", "weights of step", "time", "scores"}, nil}
		for _, t := range r.Card.Training.Stages {
			best := "last"
			if t.BestStep > 0 {
				best = strconv.Itoa(t.BestStep)
			}
			g.Lines = append(g.Lines, []string{t.Network, t.Architecture, strconv.Itoa(t.Parameters), strconv.Itoa(t.Steps), best, duration(t.Seconds), scoreText(t.Scores)})
		}
		list = append(list, g)
	}
	if r.Card != nil && len(r.Card.Scores) > 0 {
		g := grid{"Scores", []string{"on", "what", "metric", "value"}, nil}
		for _, c := range r.Card.Scores {
			g.Lines = append(g.Lines, []string{c.On, c.What, c.Metric, strconv.FormatFloat(c.Value, 'f', 3, 64)})
		}
		list = append(list, g)
	}
	if len(r.Entries) > 0 {
		g := grid{"Last entries of the log", []string{"stage", "step", "loss", "rate", "scores"}, nil}
		for _, stage := range r.stages() {
			e := r.last(stage)
			g.Lines = append(g.Lines, []string{e.Stage, strconv.Itoa(e.Step), strconv.FormatFloat(e.Loss, 'g', 4, 64), strconv.FormatFloat(e.Rate, 'g', 3, 64), scoreText(e.Scores)})
		}
		list = append(list, g)
	}
	if len(s.Skipped) > 0 {
		g := grid{"Left out", []string{"what", "slices", "why", ""}, nil}
		for i, k := range s.Skipped {
			if i == maxListed {
				g.Lines = append(g.Lines, []string{fmt.Sprintf("and %d more", s.SkippedAll-maxListed), "", "", ""})
				break
			}
			n := ""
			if k.Slices > 0 {
				n = strconv.Itoa(k.Slices)
			}
			g.Lines = append(g.Lines, []string{k.Source, n, k.Reason, k.Detail})
		}
		list = append(list, g)
	}
	return list
}

func scoreText(scores map[string]float64) string {
	var parts []string
	for _, k := range sortedKeys(scores) {
		parts = append(parts, k+" "+strconv.FormatFloat(scores[k], 'g', 5, 64))
	}
	return strings.Join(parts, ", ")
}

// stages are those of the log, in their order.
func (r *Report) stages() []string {
	var names []string
	for _, e := range r.Entries {
		if !slices.Contains(names, e.Stage) {
			names = append(names, e.Stage)
		}
	}
	return names
}

func (r *Report) last(stage string) Entry {
	var last Entry
	for _, e := range r.Entries {
		if e.Stage == stage {
			last = e
		}
	}
	return last
}

// pictures draws the loss of each stage, each score over the steps, and the
// examples.
func (r *Report) pictures() ([]picture, error) {
	var list []picture
	add := func(name, title string, p interface{ WritePNG(io.Writer) error }) error {
		var b bytes.Buffer
		if err := p.WritePNG(&b); err != nil {
			return err
		}
		list = append(list, picture{name + ".png", title, b.Bytes()})
		return nil
	}
	for _, stage := range r.stages() {
		loss := chart.Series{Name: stage}
		scores := map[string]*chart.Series{}
		for _, e := range r.Entries {
			if e.Stage != stage {
				continue
			}
			loss.X, loss.Y = append(loss.X, float64(e.Step)), append(loss.Y, e.Loss)
			for _, k := range sortedKeys(e.Scores) {
				if scores[k] == nil {
					scores[k] = &chart.Series{Name: k}
				}
				scores[k].X, scores[k].Y = append(scores[k].X, float64(e.Step)), append(scores[k].Y, e.Scores[k])
			}
		}
		if slices.ContainsFunc(loss.Y, func(v float64) bool { return v > 0 }) {
			p := chart.Plot{Title: "Loss of the stage " + stage, XLabel: "step", YLabel: "mean loss", LogY: true, Series: []chart.Series{loss}}
			if err := add("loss-"+plain(stage), p.Title, p); err != nil {
				return nil, err
			}
		}
		for _, g := range byUnit(scores) {
			p := chart.Plot{Title: "Validation of the stage " + stage, XLabel: "step", YLabel: g.unit, Series: g.series}
			if err := add("quality-"+plain(stage)+"-"+plain(g.unit), p.Title, p); err != nil {
				return nil, err
			}
		}
	}
	if len(r.Examples) > 0 {
		p := chart.Panel{Title: "Slices of the validation: before, after, difference", Columns: 3}
		for _, e := range r.Examples {
			removed := make([]float32, len(e.Before))
			most := float32(0)
			for i, v := range e.Before {
				removed[i] = v - e.After[i]
				most = max(most, removed[i], -removed[i])
			}
			window := max(float64(most), 1e-6)
			name := fmt.Sprintf("%s %d", e.Source, e.Index)
			p.Tiles = append(p.Tiles,
				chart.Tile{Caption: name, Width: e.Width, Height: e.Height, Pixels: e.Before, High: 1},
				chart.Tile{Caption: "after", Width: e.Width, Height: e.Height, Pixels: e.After, High: 1},
				chart.Tile{Caption: "taken off", Width: e.Width, Height: e.Height, Pixels: removed, Low: -window, High: window})
		}
		if err := add("slices", p.Title, p); err != nil {
			return nil, err
		}
	}
	return list, nil
}

type unitGroup struct {
	unit   string
	series []chart.Series
}

// byUnit puts scores that can share an axis together: those that end in the same
// unit, "_db", the others each by itself.
func byUnit(scores map[string]*chart.Series) []unitGroup {
	var list []unitGroup
	for _, k := range sortedKeys(scores) {
		unit := k
		if strings.HasSuffix(k, "_db") {
			unit = "dB"
		}
		if i := slices.IndexFunc(list, func(g unitGroup) bool { return g.unit == unit }); i >= 0 {
			list[i].series = append(list[i].series, *scores[k])
			continue
		}
		list = append(list, unitGroup{unit, []chart.Series{*scores[k]}})
	}
	return list
}

// plain is a name for a file.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, s)
}

// markdown is the report as text.
func (r *Report) markdown(pictures []picture) []byte {
	var b bytes.Buffer
	cell := func(s string) string {
		return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;").Replace(s)
	}
	fmt.Fprintf(&b, "# %s\n", cell(r.title()))
	for _, s := range r.about() {
		fmt.Fprintf(&b, "\n* %s", cell(s))
	}
	b.WriteString("\n")
	for _, g := range r.grids() {
		fmt.Fprintf(&b, "\n## %s\n\n| %s |\n|%s\n", g.Title, strings.Join(g.Head, " | "), strings.Repeat("---|", len(g.Head)))
		for _, l := range g.Lines {
			b.WriteString("|")
			for _, c := range l {
				b.WriteString(" " + cell(c) + " |")
			}
			b.WriteString("\n")
		}
	}
	for i, p := range pictures {
		if i == 0 {
			b.WriteString("\n## Pictures\n")
		}
		fmt.Fprintf(&b, "\n![%s](%s)\n", cell(p.Title), p.Name)
	}
	return b.Bytes()
}
