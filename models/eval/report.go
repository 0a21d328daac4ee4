package eval

import (
	"bytes"
	_ "embed"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/chart"
	"github.com/diffdenoise/denoised/internal/dataset"
)

// Report is what Run measured. Its JSON is stable and the same for the same images,
// seed and model.
type Report struct {
	Program string         `json:"program"` // version of what measured
	Model   string         `json:"model"`
	Hash    string         `json:"model_hash"`
	Seed    uint64         `json:"seed"`
	Shrink  int            `json:"shrink"`  // of the slices that noise was added to
	Methods []string       `json:"methods"` // in the order of the tables, Noisy first
	Tables  []Table        `json:"tables"`
	Skipped []dataset.Skip `json:"skipped"`
	// References are the slices that noise was added to.
	References []Reference `json:"references"`
	Scores     []Score     `json:"scores"`
	Pictures   []string    `json:"-"` // files that Write made, for the report
	// Seconds is the mean time of a method for a slice. It is in no file, for it
	// differs from run to run.
	Seconds map[string]float64 `json:"-"`

	ours   []string
	panels []*job
	worst  []*job // of each table
}

// Reference is a slice that is taken for clean.
type Reference struct {
	Group string  `json:"group"`
	Set   string  `json:"set"`
	Slice string  `json:"slice"`
	Noise float64 `json:"own_noise"` // median standard deviation, estimated; 0: none was found
}

// Table is the means of one group of sets under one protocol.
type Table struct {
	Protocol string `json:"protocol"`
	Group    string `json:"group"`
	Sets     int    `json:"sets"`
	Slices   int    `json:"slices"` // different ones, or pairs of slice and repetition
	// Noise is the median of the references' own noise.
	Noise float64 `json:"own_noise"`
	Means []Mean  `json:"means"`
	Pairs []Pair  `json:"pairs"`
}

// AllRows is the row that holds the means over all kinds of noise.
const AllRows = "mean of the rows"

// Mean is the score of a method for a kind of noise: PSNR of the mean squared error over
// all slices' pixels, the mean of SSIM over slices.
type Mean struct {
	Row        string  `json:"row"`
	Method     string  `json:"method"`
	Slices     int     `json:"slices"`
	PSNR       float64 `json:"psnr"`
	SSIM       float64 `json:"ssim"`
	TissuePSNR float64 `json:"tissue_psnr"`
	TissueSSIM float64 `json:"tissue_ssim"`
	// Corrected is the PSNR without the reference's own noise; nil if that explains all of
	// the error, and if the reference is no mean of repetitions.
	Corrected       *float64 `json:"psnr_corrected,omitempty"`
	TissueCorrected *float64 `json:"tissue_psnr_corrected,omitempty"`
	// Edges is the root mean square of what was taken off at edges by that in flat tissue;
	// nil where nothing was taken off there. Of the noisy image, it is that of its error.
	Edges *float64 `json:"edges,omitempty"`
	// Outcomes and Causes count slices, of methods with a quality gate.
	Outcomes map[Outcome]int `json:"outcomes,omitempty"`
	Causes   map[string]int  `json:"causes,omitempty"`
	// Reliability is of what the method states of its error.
	Reliability *Reliability `json:"reliability,omitempty"`
	Strength    float64      `json:"strength,omitempty"` // that was tuned, of a classical method
}

// Pair is how much better, in dB, Method is than Than on the same slices.
type Pair struct {
	Row    string     `json:"row"`
	Method string     `json:"method"`
	Than   string     `json:"than"`
	PSNR   Difference `json:"psnr"`
	Tissue Difference `json:"tissue_psnr"`
}

// Difference is a mean over slices, its standard error (0 for one slice), and the
// slice where it is least.
type Difference struct {
	Mean     float64 `json:"mean"`
	StdError float64 `json:"std_error"`
	Worst    float64 `json:"worst"`
	WorstOn  string  `json:"worst_on"`
}

// summarize makes the tables.
func (r *Report) summarize(strength map[tuneKey]float64) {
	type at struct{ protocol, group string }
	byTable := map[at][]*Score{}
	var order []at
	for i := range r.Scores {
		s := &r.Scores[i]
		k := at{s.Protocol, s.Group}
		if byTable[k] == nil {
			order = append(order, k)
		}
		byTable[k] = append(byTable[k], s)
	}
	protocols := []string{Simulated, Scanner, Repetitions}
	slices.SortStableFunc(order, func(a, b at) int {
		return slices.Index(protocols, a.protocol) - slices.Index(protocols, b.protocol)
	})
	for _, k := range order {
		t := Table{Protocol: k.protocol, Group: k.group, Pairs: []Pair{}}
		sets, keys := map[string]bool{}, map[string]bool{}
		var rows []string
		scores := map[[2]string][]*Score{} // by row and method, in the order of the slices
		for _, s := range byTable[k] {
			sets[s.Set], keys[s.key()] = true, true
			if !slices.Contains(rows, s.Row) {
				rows = append(rows, s.Row)
			}
			scores[[2]string{s.Row, s.Method}] = append(scores[[2]string{s.Row, s.Method}], s)
		}
		t.Sets, t.Slices = len(sets), len(keys)
		var own []float64
		for _, ref := range r.References {
			if k.protocol != Repetitions && ref.Group == k.group {
				own = append(own, ref.Noise)
			}
		}
		if slices.Sort(own); len(own) > 0 {
			t.Noise = own[len(own)/2]
		}
		for _, row := range rows {
			for _, method := range r.Methods {
				if list := scores[[2]string{row, method}]; list != nil {
					m := mean(list)
					m.Strength = strength[tuneKey{k.protocol, k.group, row, method}]
					t.Means = append(t.Means, m)
				}
			}
			for _, ours := range r.ours {
				for _, other := range r.Methods {
					a, b := scores[[2]string{row, ours}], scores[[2]string{row, other}]
					if ours == other || len(a) == 0 || len(a) != len(b) {
						continue
					}
					t.Pairs = append(t.Pairs, Pair{row, ours, other,
						difference(a, b, func(s *Score) float64 { return s.PSNR }),
						difference(a, b, func(s *Score) float64 { return s.TissuePSNR })})
				}
			}
		}
		if len(rows) > 1 && k.protocol != Repetitions {
			t.Means = append(t.Means, overRows(t.Means, r.Methods, len(rows))...)
		}
		r.Tables = append(r.Tables, t)
	}
	if r.Skipped == nil {
		r.Skipped = []dataset.Skip{}
	}
	if r.References == nil {
		r.References = []Reference{}
	}
}

func mean(list []*Score) Mean {
	m := Mean{Row: list[0].Row, Method: list[0].Method, Slices: len(list), Reliability: pooled(list)}
	var whole, tissue, edge, flat pool
	for _, s := range list {
		m.SSIM, m.TissueSSIM = m.SSIM+s.SSIM/float64(len(list)), m.TissueSSIM+s.TissueSSIM/float64(len(list))
		whole.add(s.Pixels, math.Pow(10, -s.PSNR/10), s.Variance)
		tissue.add(s.Tissue, math.Pow(10, -s.TissuePSNR/10), s.TissueVariance)
		edge.add(s.Tissue, s.Edge, 0)
		flat.add(s.Tissue, s.Flat, 0)
		if s.Outcome == "" {
			continue
		}
		if m.Outcomes == nil {
			m.Outcomes, m.Causes = map[Outcome]int{}, map[string]int{}
		}
		m.Outcomes[s.Outcome]++
		if s.Cause != "" {
			m.Causes[s.Cause]++
		}
	}
	m.PSNR, m.TissuePSNR = psnr(whole.mean()), psnr(tissue.mean())
	m.Corrected, m.TissueCorrected = whole.corrected(), tissue.corrected()
	if flat.sum > 0 {
		q := math.Sqrt(edge.mean() / flat.mean())
		m.Edges = &q
	}
	return m
}

// pool is a mean square over the pixels of all slices.
type pool struct{ pixels, sum, variance float64 }

func (p *pool) add(pixels int, square, variance float64) {
	n := float64(pixels)
	p.pixels, p.sum, p.variance = p.pixels+n, p.sum+n*square, p.variance+n*variance
}

func (p *pool) mean() float64 { return p.sum / p.pixels }

// corrected is the PSNR without the reference's own noise.
func (p *pool) corrected() *float64 {
	if p.variance == 0 || p.sum <= p.variance {
		return nil
	}
	v := psnr((p.sum - p.variance) / p.pixels)
	return &v
}

// overRows are the means over all rows of the methods that were run on each.
func overRows(means []Mean, methods []string, rows int) []Mean {
	var out []Mean
	for _, method := range methods {
		sum, n := Mean{Row: AllRows, Method: method}, 0
		for _, m := range means {
			if m.Method != method {
				continue
			}
			n++
			sum.Slices += m.Slices
			for k, v := range m.Outcomes {
				if sum.Outcomes == nil {
					sum.Outcomes, sum.Causes = map[Outcome]int{}, map[string]int{}
				}
				sum.Outcomes[k] += v
			}
			for k, v := range m.Causes {
				sum.Causes[k] += v
			}
			sum.PSNR, sum.SSIM = sum.PSNR+m.PSNR, sum.SSIM+m.SSIM
			sum.TissuePSNR, sum.TissueSSIM = sum.TissuePSNR+m.TissuePSNR, sum.TissueSSIM+m.TissueSSIM
		}
		if n != rows {
			continue
		}
		f := 1 / float64(n)
		sum.PSNR, sum.SSIM, sum.TissuePSNR, sum.TissueSSIM = sum.PSNR*f, sum.SSIM*f, sum.TissuePSNR*f, sum.TissueSSIM*f
		out = append(out, sum)
	}
	return out
}

func difference(a, b []*Score, of func(*Score) float64) Difference {
	d := Difference{Worst: math.Inf(1)}
	n := float64(len(a))
	for i, s := range a {
		v := of(s) - of(b[i])
		if d.Mean += v / n; v < d.Worst {
			d.Worst, d.WorstOn = v, s.key()
		}
	}
	sq := 0.0
	for i, s := range a {
		v := of(s) - of(b[i]) - d.Mean
		sq += v * v
	}
	if len(a) > 1 {
		d.StdError = math.Sqrt(sq / (n - 1) / n)
	}
	return d
}

// rows are the names of a table's rows in their order.
func (t *Table) rows() []string {
	var rows []string
	for _, m := range t.Means {
		if !slices.Contains(rows, m.Row) {
			rows = append(rows, m.Row)
		}
	}
	return rows
}

func (t *Table) mean(row, method string) *Mean {
	for i, m := range t.Means {
		if m.Row == row && m.Method == method {
			return &t.Means[i]
		}
	}
	return nil
}

// Title says what a table is of.
func (t *Table) Title() string {
	switch t.Protocol {
	case Repetitions:
		what := "one measurement against the mean of the others"
		if t.Group == pairs {
			what = "one measurement against the other"
		}
		return fmt.Sprintf("%s: %s, %d %s of %d %s", t.Group, what, t.Slices, plural(t.Slices, "slice"), t.Sets,
			plural(t.Sets, "set"))
	case Scanner:
		return t.of("simulated scanners")
	}
	return t.of("simulated noise")
}

func (t *Table) of(what string) string {
	return fmt.Sprintf("%s: %s, %d %s of %d %s, own noise about %.1f/255",
		t.Group, what, t.Slices, plural(t.Slices, "slice"), t.Sets, plural(t.Sets, "set"), 255*t.Noise)
}

// head says what the rows are.
func (t *Table) head() string {
	switch t.Protocol {
	case Repetitions:
		return "set"
	case Scanner:
		return "scanner"
	}
	return "noise"
}

// name tells the table's pictures from those of others.
func (t *Table) name() string { return t.Protocol + "_" + t.Group }

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// Grid is a table as people read it: one line per row, one column per method.
type Grid struct {
	Title string
	Head  []string
	Lines [][]string
}

// Grids returns the tables of a Table: PSNR and SSIM of whole slices and of tissue,
// and the differences of ours and the other methods.
func (r *Report) Grids(t *Table) []Grid {
	grid := func(title, format string, of func(*Mean) *float64) Grid {
		g := Grid{Title: title, Head: []string{t.head()}}
		g.Head = append(g.Head, r.Methods...)
		for _, row := range t.rows() {
			line := []string{row}
			for _, method := range r.Methods {
				text := "–"
				if m := t.mean(row, method); m != nil {
					if v := of(m); v != nil {
						text = fmt.Sprintf(format, *v)
					}
				}
				line = append(line, text)
			}
			g.Lines = append(g.Lines, line)
		}
		return g
	}
	grids := []Grid{
		grid("PSNR in dB, whole slice", "%.2f", func(m *Mean) *float64 { return &m.PSNR }),
		grid("PSNR in dB, tissue", "%.2f", func(m *Mean) *float64 { return &m.TissuePSNR }),
		grid("SSIM, whole slice", "%.3f", func(m *Mean) *float64 { return &m.SSIM }),
		grid("SSIM, tissue", "%.3f", func(m *Mean) *float64 { return &m.TissueSSIM }),
	}
	if t.Protocol == Repetitions {
		grids = append(grids,
			grid("PSNR in dB without the reference's own noise, whole slice", "%.2f", func(m *Mean) *float64 { return m.Corrected }),
			grid("PSNR in dB without the reference's own noise, tissue", "%.2f", func(m *Mean) *float64 { return m.TissueCorrected }))
	}
	grids = append(grids, grid("What is taken off at edges, times that in flat tissue (noisy: of the noise itself)",
		"%.2f",
		func(m *Mean) *float64 { return m.Edges }))
	if g := t.outcomes(); len(g.Lines) > 0 {
		grids = append(grids, g)
	}
	grids = append(grids, t.reliabilities(r.Methods)...)
	pairs := Grid{Title: "Paired differences of PSNR in dB: mean ± standard error over slices, worst slice",
		Head: []string{t.head(), "method", "than", "whole slice", "worst", "tissue", "worst", "worst slice in tissue"}}
	for _, p := range t.Pairs {
		pairs.Lines = append(pairs.Lines, []string{p.Row, p.Method, p.Than,
			signed(p.PSNR.Mean) + fmt.Sprintf(" ± %.2f", p.PSNR.StdError), signed(p.PSNR.Worst),
			signed(p.Tissue.Mean) + fmt.Sprintf(" ± %.2f", p.Tissue.StdError), signed(p.Tissue.Worst), p.Tissue.WorstOn})
	}
	if len(pairs.Lines) > 0 {
		grids = append(grids, pairs)
	}
	return grids
}

// outcomes says what became of the slices of the methods with a quality gate.
func (t *Table) outcomes() Grid {
	g := Grid{Title: "What became of the slices: percent, and how many for which reason",
		Head: []string{t.head(), "method", string(Whole), string(InPart), string(HeldBack), string(Untouched),
			"because of"}}
	for _, m := range t.Means {
		if m.Outcomes == nil {
			continue
		}
		line := []string{m.Row, m.Method}
		for _, o := range []Outcome{Whole, InPart, HeldBack, Untouched} {
			line = append(line, fmt.Sprintf("%.0f", 100*float64(m.Outcomes[o])/float64(m.Slices)))
		}
		var causes []string
		for _, c := range slices.Sorted(maps.Keys(m.Causes)) {
			causes = append(causes, fmt.Sprintf("%s %d", c, m.Causes[c]))
		}
		g.Lines = append(g.Lines, append(line, strings.Join(causes, ", ")))
	}
	return g
}

// signed writes a difference in dB; what rounds to 0 has no minus.
func signed(v float64) string {
	return strings.Replace(fmt.Sprintf("%+.2f", v), "-0.00", "+0.00", 1)
}

// Write makes the files of a report in a folder, which is made if it is not there:
// results.json, results.csv, report.md, report.html, and the plots and panels that
// the last two show. Other files in the folder stay.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.Pictures = nil
	if err := r.draw(dir); err != nil {
		return err
	}
	var table bytes.Buffer
	if err := r.writeCSV(&table); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := reportPage.Execute(&page, r.view()); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"results.json", append(data, '\n')}, {"results.csv", table.Bytes()}, {"report.md", r.markdown()}, {"report.html", page.Bytes()}} {
		if err := atomicfile.Write(filepath.Join(dir, f.name), 0o644, func(w *os.File) error {
			_, err := w.Write(f.data)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) writeCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write([]string{"protocol", "group", "set", "slice", "repetition", "others", "row", "method", "psnr",
		"ssim",
		"tissue_psnr", "tissue_ssim", "pixels", "tissue_pixels", "removed_at_edges", "removed_in_flat_tissue",
		"outcome", "cause",
		"reference_variance", "tissue_reference_variance"}); err != nil {
		return err
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', 4, 64) }
	small := func(v float64) string { return strconv.FormatFloat(v, 'g', 5, 64) }
	for _, s := range r.Scores {
		rep, others := "", ""
		if s.Repetition != nil {
			rep, others = strconv.Itoa(*s.Repetition), strconv.Itoa(s.Others)
		}
		if err := c.Write([]string{s.Protocol, s.Group, s.Set, s.Slice, rep, others, s.Row, s.Method, number(s.PSNR), number(s.SSIM),
			number(s.TissuePSNR), number(s.TissueSSIM), strconv.Itoa(s.Pixels), strconv.Itoa(s.Tissue), small(s.Edge),
			small(s.Flat),
			string(s.Outcome), s.Cause, small(s.Variance), small(s.TissueVariance)}); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

// draw makes the pictures.
func (r *Report) draw(dir string) error {
	save := func(name string, p interface{ WritePNG(io.Writer) error }) error {
		if err := chart.Save(filepath.Join(dir, name), p); err != nil {
			return err
		}
		r.Pictures = append(r.Pictures, name)
		return nil
	}
	for i := range r.Tables {
		t := &r.Tables[i]
		if t.Protocol == Repetitions {
			continue
		}
		rows := slices.DeleteFunc(t.rows(), func(s string) bool { return s == AllRows })
		for _, p := range []struct {
			name, label string
			of          func(m, noisy *Mean) float64
			from        int // first method
		}{
			{"psnr", "mean PSNR, dB", func(m, _ *Mean) float64 { return m.PSNR }, 0},
			{"gain", "mean gain in tissue over the noisy image, dB", func(m, noisy *Mean) float64 { return m.TissuePSNR - noisy.TissuePSNR }, 1},
		} {
			c := chart.Plot{Title: t.Title(), YLabel: p.label, Names: rows, Zero: p.from > 0}
			for _, method := range r.Methods[p.from:] {
				s := chart.Series{Name: method, Points: true}
				for k, row := range rows {
					if m, noisy := t.mean(row, method), t.mean(row, Noisy); m != nil && noisy != nil {
						s.X, s.Y = append(s.X, float64(k)), append(s.Y, p.of(m, noisy))
					}
				}
				if len(s.Y) > 0 {
					c.Series = append(c.Series, s)
				}
			}
			if err := save(fileName(p.name, t.name()), c); err != nil {
				return err
			}
		}
	}
	for i := range r.Tables {
		t := &r.Tables[i]
		for _, ours := range r.ours {
			if c, ok := r.differences(t, ours); ok {
				if err := save(fileName("difference_"+ours, t.name()), c); err != nil {
					return err
				}
			}
		}
	}
	for _, j := range r.worst {
		if err := save(fileName("worst", j.protocol+"_"+j.group), j.panel()); err != nil {
			return err
		}
	}
	for k, j := range r.panels {
		if err := save(fileName(fmt.Sprintf("panel_%02d", k+1), j.set), j.panel()); err != nil {
			return err
		}
	}
	return nil
}

// differences plots, for every slice, how much better ours is than the others.
func (r *Report) differences(t *Table, ours string) (chart.Plot, bool) {
	rows := slices.DeleteFunc(t.rows(), func(s string) bool { return s == AllRows })
	c := chart.Plot{Title: t.Title(), YLabel: ours + " minus the other, tissue PSNR, dB", Names: rows, Zero: true}
	mine := map[[2]string]float64{}
	for i := range r.Scores {
		if s := &r.Scores[i]; s.Protocol == t.Protocol && s.Group == t.Group && s.Method == ours {
			mine[[2]string{s.Row, s.key()}] = s.TissuePSNR
		}
	}
	for m, method := range r.Methods {
		if method == ours {
			continue
		}
		line := chart.Series{Name: method, Points: true}
		for i := range r.Scores {
			s := &r.Scores[i]
			if s.Protocol != t.Protocol || s.Group != t.Group || s.Method != method {
				continue
			}
			if v, ok := mine[[2]string{s.Row, s.key()}]; ok {
				// each method a little further right, so that its points can be told apart
				x := float64(slices.Index(rows, s.Row)) + 0.7*(float64(m)+0.5)/float64(len(r.Methods)) - 0.35
				line.X, line.Y = append(line.X, x), append(line.Y, v-s.TissuePSNR)
			}
		}
		if len(line.Y) > 0 {
			c.Series = append(c.Series, line)
		}
	}
	return c, len(c.Series) > 0
}

// panelSide is the most pixels of a slice's side in a panel.
const panelSide = 256

// panel shows the images, what each method took off, and what each got wrong.
func (j *job) panel() chart.Panel {
	e := j.truth
	cx, cy, n := 0, 0, 0
	for i, in := range e.mask {
		if in {
			cx, cy, n = cx+i%e.w, cy+i/e.w, n+1
		}
	}
	x, y, w, h := window(e.w, e.h, cx/max(n, 1), cy/max(n, 1), panelSide)
	sd := 0.0
	for i, in := range e.mask {
		if in {
			sd += float64(e.sigma[i]) / float64(n)
		}
	}
	reach := max(3*sd, 1e-3)
	images := append(slices.Clone(j.images), picture{"reference", e.ref})
	p := chart.Panel{Title: j.slice + ", " + j.row, Columns: len(images)}
	if j.protocol == Repetitions {
		p.Title = fmt.Sprintf("%s, repetition %d, reference: mean of the other %d", j.slice, j.rep, j.others)
	}
	tile := func(caption string, low, high float64, at func(i int) float32) {
		px := make([]float32, 0, len(e.ref))
		for i := range e.ref {
			px = append(px, at(i))
		}
		p.Tiles = append(p.Tiles, chart.Tile{Caption: caption, Width: w, Height: h, Pixels: cut(px, e.w, x, y, w, h), Low: low, High: high})
	}
	for k, img := range images {
		caption := img.method
		if k < len(j.scores) {
			caption = fmt.Sprintf("%s %.2f dB", img.method, j.scores[k].PSNR)
		}
		tile(caption, 0, 1, func(i int) float32 { return img.px[i] })
	}
	for _, img := range images {
		tile("noisy - "+img.method, -reach, reach, func(i int) float32 { return e.noisy[i] - img.px[i] })
	}
	for _, img := range images {
		tile(img.method+" - reference", -reach, reach, func(i int) float32 { return img.px[i] - e.ref[i] })
	}
	return p
}

// fileName is the name of a picture: letters, digits, '-', '_' and '.' only.
func fileName(kind, of string) string {
	of = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
			return c
		}
		return '_'
	}, of)
	const most = 120
	if len(of) > most {
		of = of[len(of)-most:]
	}
	return strings.Map(func(c rune) rune {
		if c == ' ' {
			return '_'
		}
		return c
	}, kind) + "_" + of + ".png"
}

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.New("report").Parse(reportHTML))

// view is what the report's page shows.
type view struct {
	*Report
	Sections []section
	About    []string
}

type section struct {
	Title string
	Grids []Grid
}

// about says what the numbers mean.
var about = []string{
	"PSNR is of the mean squared error over all slices of a row, SSIM the mean over slices, both on a scale where 1 is the 99.9th percentile " +
		"of the volume; nothing is clipped. Tissue is what lies above Otsu's threshold of the reference, or above a tenth of a simulated " +
		"scanner's, closed with a disc of 3 pixels. Where measurements are compared, values at either end of a slice's are left out of it.",
	"The estimated methods find the noise out by themselves, as ours do. The other classical ones are told the true noise, and their strength " +
		"is tuned for every kind of noise on slices that are not scored. Ours are given the noisy pixels and nothing else.",
	"Added noise, simulated scanners and repetitions are different protocols: do not compare their numbers. The references of simulations have " +
		"noise of their own; taking it off counts as an error. Where it is not far below what is added, the row says little.",
	"For research use. Not a medical device.",
}

func (r *Report) view() view {
	v := view{Report: r, About: about}
	for i := range r.Tables {
		t := &r.Tables[i]
		v.Sections = append(v.Sections, section{t.Title(), r.Grids(t)})
	}
	return v
}

// Markdown writes the tables as text, each under a heading, after a line that says what
// was measured.
func (r *Report) Markdown(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nModel %s (%s), seed %d, denoised %s.\n", cell(r.Model), cell(r.Hash), r.Seed, cell(r.Program))
	for _, s := range r.view().Sections {
		fmt.Fprintf(&b, "\n## %s\n", cell(s.Title))
		for _, g := range s.Grids {
			fmt.Fprintf(&b, "\n%s:\n\n|", g.Title)
			for _, h := range g.Head {
				b.WriteString(" " + cell(h) + " |")
			}
			b.WriteString("\n|" + strings.Repeat("---|", len(g.Head)) + "\n")
			for _, l := range g.Lines {
				b.WriteString("|")
				for _, c := range l {
					b.WriteString(" " + cell(c) + " |")
				}
				b.WriteString("\n")
			}
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// cell makes a text safe in a table of Markdown.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;").Replace(s)
}

// markdown is the report as text.
func (r *Report) markdown() []byte {
	var b bytes.Buffer
	b.WriteString("# Evaluation\n")
	for _, s := range about {
		fmt.Fprintf(&b, "\n* %s", s)
	}
	b.WriteString("\n")
	r.Markdown(&b) // a buffer takes everything
	if len(r.Pictures) > 0 {
		b.WriteString("\n## Pictures\n")
		for _, p := range r.Pictures {
			fmt.Fprintf(&b, "\n![%s](%s)\n", p, p)
		}
	}
	if len(r.Skipped) > 0 {
		b.WriteString("\n## Left out\n\n| what | why | |\n|---|---|---|\n")
		for _, s := range r.Skipped {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(s.Source), cell(s.Reason), cell(s.Detail))
		}
	}
	return b.Bytes()
}
