package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// leaf is a value of the file as text, with its place. All values go through
// it, so that every mistake in one can be shown with its line.
type leaf struct {
	text string
	line int
	set  bool
	odd  bool // a list or a mapping where a single value belongs
}

// UnmarshalYAML takes a node as it stands.
func (l *leaf) UnmarshalYAML(n ast.Node) error {
	for {
		switch v := n.(type) {
		case *ast.MappingValueNode, *ast.MappingNode, *ast.SequenceNode:
			l.odd = true
		case *ast.TagNode:
			n = v.Value
			continue
		case *ast.NullNode:
			return nil // a key without a value: the default
		case *ast.LiteralNode:
			l.text, l.set, l.line = strings.TrimSpace(v.Value.Value), true, v.GetToken().Position.Line
			return nil
		}
		break
	}
	tk := n.GetToken()
	l.text, l.line, l.set = tk.Value, tk.Position.Line, true
	return nil
}

// file is the shape of the file: what is not here is an unknown key.
type file struct {
	StateDir leaf `yaml:"state_dir"`
	DICOM    struct {
		Listen   leaf            `yaml:"listen"`
		AETitles map[string]leaf `yaml:"ae_titles"`
		Peers    []struct {
			AETitle leaf   `yaml:"ae_title"`
			Hosts   []leaf `yaml:"hosts"`
		} `yaml:"peers"`
		TLS struct {
			Listen   leaf `yaml:"listen"`
			Cert     leaf `yaml:"cert"`
			Key      leaf `yaml:"key"`
			ClientCA leaf `yaml:"client_ca"`
		} `yaml:"tls"`
		Limits struct {
			Associations leaf `yaml:"associations"`
			PerHost      leaf `yaml:"per_host"`
			Object       leaf `yaml:"object"`
		} `yaml:"limits"`
		Timeouts struct {
			Request leaf `yaml:"request"`
			Idle    leaf `yaml:"idle"`
			Store   leaf `yaml:"store"`
		} `yaml:"timeouts"`
		Admit []leaf `yaml:"admit"`
	} `yaml:"dicom"`
	Series struct {
		Quiet     leaf `yaml:"quiet"`
		QuietOpen leaf `yaml:"quiet_open"`
		Max       leaf `yaml:"max"`
	} `yaml:"series"`
	Rules []struct {
		Name    leaf `yaml:"name"`
		When    leaf `yaml:"when"`
		Quality leaf `yaml:"quality"`
	} `yaml:"rules"`
	Destinations []struct {
		Name       leaf   `yaml:"name"`
		AETitle    leaf   `yaml:"ae_title"`
		Address    leaf   `yaml:"address"`
		Send       []leaf `yaml:"send"`
		Commitment leaf   `yaml:"commitment"`
		TLS        leaf   `yaml:"tls"`
	} `yaml:"destinations"`
	Denoise struct {
		Backend         leaf `yaml:"backend"`
		Workers         leaf `yaml:"workers"`
		Model           leaf `yaml:"model"`
		RadiographModel leaf `yaml:"radiograph_model"`
		Strength        leaf `yaml:"strength"`
		HighAdapt       leaf `yaml:"high_adapt"`
	} `yaml:"denoise"`
	HTTP struct {
		Listen    leaf `yaml:"listen"`
		UsersFile leaf `yaml:"users_file"`
	} `yaml:"http"`
	Watch []struct {
		Dir     leaf `yaml:"dir"`
		Quality leaf `yaml:"quality"`
	} `yaml:"watch"`
	Retention struct {
		AfterForward leaf `yaml:"after_forward"`
		DiskWarn     leaf `yaml:"disk_warn"`
		DiskRefuse   leaf `yaml:"disk_refuse"`
	} `yaml:"retention"`
	Log struct {
		Level leaf `yaml:"level"`
	} `yaml:"log"`
}

func parseConfig(path string, text []byte) (*Config, error) {
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, syntaxError(path, tree, err)
	}
	docs := slices.DeleteFunc(slices.Clone(tree.Docs), func(d *ast.DocumentNode) bool { return d.Body == nil })
	p := &configParser{path: path, lines: map[string]int{}}
	var f file
	switch len(docs) {
	case 0: // empty: all defaults
	case 1:
		v := &keyFinder{lines: p.lines}
		ast.Walk(v, docs[0].Body)
		if v.reference > 0 {
			return nil, &ConfigError{File: path, Line: v.reference, Problem: "anchors and aliases (& and *) are not read", Fix: "write the value out"}
		}
		if err := checkKeys(path, docs[0].Body); err != nil {
			return nil, err
		}
		if err := yaml.NodeToValue(docs[0].Body, &f, yaml.Strict()); err != nil {
			return nil, syntaxError(path, tree, err)
		}
	default:
		return nil, &ConfigError{File: path, Line: docs[1].Body.GetToken().Position.Line, Problem: "a second document", Fix: "remove the line with ---"}
	}
	cfg := p.config(&f)
	if p.err != nil {
		return nil, p.err
	}
	return cfg, nil
}

// keyFinder notes the line of every key by its path.
type keyFinder struct {
	lines     map[string]int
	reference int // line of the first anchor or alias
}

func (v *keyFinder) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		if v.reference == 0 {
			v.reference = n.GetToken().Position.Line
		}
	case *ast.MappingValueNode:
		key := n.Key.GetToken()
		v.lines[keyPath(n.Value.GetPath())] = key.Position.Line
	case *ast.SequenceNode:
		for _, item := range n.Values {
			if m, ok := item.(*ast.MappingNode); ok && len(m.Values) > 0 {
				v.lines[keyPath(item.GetPath())] = m.Values[0].Key.GetToken().Position.Line
			}
		}
	}
	return v
}

// keyPath writes a path of goccy/go-yaml as our errors do.
func keyPath(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, "$"), ".") }

// syntaxError says where goccy/go-yaml stumbled.
func syntaxError(path string, tree *ast.File, err error) error {
	out := &ConfigError{File: path, Problem: err.Error(), Cause: err}
	var ye yaml.Error
	if !errors.As(err, &ye) {
		return out
	}
	out.Problem = ye.GetMessage()
	tk := ye.GetToken()
	if tk == nil {
		return out
	}
	out.Line = tk.Position.Line
	found := &tokenFinder{line: tk.Position.Line, column: tk.Position.Column}
	if tree != nil {
		for _, d := range tree.Docs {
			ast.Walk(found, d)
		}
	}
	out.Key = found.path
	var unknown *yaml.UnknownFieldError
	var kind *yaml.UnexpectedNodeTypeError
	switch {
	case errors.As(err, &unknown):
		if out.Problem = "unknown key"; out.Key == "" {
			out.Key = tk.Value
		}
		where := out.Key[:max(strings.LastIndexByte(out.Key, '.'), 0)]
		out.Fix = "known here: " + strings.Join(knownKeys(where), ", ")
	case errors.As(err, &kind):
		out.Fix = "compare with the default file, which shows the form of every key"
	}
	return out
}

// tokenFinder finds the path of the key, or of the key of the value, at a place.
type tokenFinder struct {
	line, column int
	path         string
}

func (v *tokenFinder) Visit(n ast.Node) ast.Visitor {
	if m, ok := n.(*ast.MappingValueNode); ok {
		for _, n := range []ast.Node{m.Key, m.Value} {
			if p := n.GetToken().Position; p.Line == v.line && p.Column == v.column {
				v.path = keyPath(m.Value.GetPath())
			}
		}
	}
	return v
}

// configParser turns leaves into values. The first mistake stays in err.
type configParser struct {
	path  string
	lines map[string]int
	err   error
}

// fail records a mistake at a key. Among several the one furthest up in the
// file is kept, so that a person fixes them in order.
func (p *configParser) fail(line int, key, fix, problem string, args ...any) {
	if line == 0 {
		line = p.lineOf(key)
	}
	e := &ConfigError{File: p.path, Line: line, Key: key, Problem: fmt.Sprintf(problem, args...), Fix: fix}
	if old, ok := p.err.(*ConfigError); ok && old.Line <= e.Line {
		return
	}
	p.err = e
}

// lineOf is the line of a key, or of the nearest key above it that is in the file.
func (p *configParser) lineOf(key string) int {
	for key != "" {
		if n, ok := p.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 0
}

// given tells whether a key has a single value.
func (p *configParser) given(l leaf, key string) bool {
	if l.odd {
		p.fail(l.line, key, "compare with the default file, which shows the form of every key", "a list or mapping where one value belongs")
		return false
	}
	return l.set
}

// item tells whether an entry of a list has a value. An empty one is a mistake:
// left out of hosts it would let everybody in, left out of send nothing would be sent.
func (p *configParser) item(l leaf, key string) bool {
	if !l.set && !l.odd {
		p.fail(l.line, key, "write a value, or remove the line", "empty")
		return false
	}
	return p.given(l, key)
}

func (p *configParser) text(l leaf, key string, to *string) {
	if p.given(l, key) {
		*to = l.text
	}
}

func (p *configParser) duration(l leaf, key string, lo, hi time.Duration, to *time.Duration) {
	if !p.given(l, key) {
		return
	}
	const fix = "write it as 500ms, 20s, 5m or 72h"
	d, err := time.ParseDuration(l.text)
	switch {
	case err != nil:
		p.fail(l.line, key, fix, "%q is not a time", l.text)
	case d < lo || d > hi:
		p.fail(l.line, key, fmt.Sprintf("choose one from %v to %v", lo, hi), "%s is out of range", l.text)
	}
	*to = d
}

func (p *configParser) integer(l leaf, key string, lo, hi int, to *int) {
	if !p.given(l, key) {
		return
	}
	n, err := strconv.Atoi(l.text)
	if err != nil || n < lo || n > hi {
		p.fail(l.line, key, fmt.Sprintf("write a whole number from %d to %d", lo, hi), "%q is not one", l.text)
	}
	*to = n
}

func (p *configParser) number(l leaf, key, fix string, ok func(float64) bool, to *float64) {
	if !p.given(l, key) {
		return
	}
	x, err := strconv.ParseFloat(l.text, 64)
	if err != nil || !ok(x) {
		p.fail(l.line, key, fix, "%q is not possible", l.text)
	}
	*to = x
}

func (p *configParser) boolean(l leaf, key string, to *bool) {
	if !p.given(l, key) {
		return
	}
	if l.text != "true" && l.text != "false" {
		p.fail(l.line, key, "write true or false", "%q is neither", l.text)
	}
	*to = l.text == "true"
}

var sizeForm = regexp.MustCompile(`^([0-9]+)\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?$`)

// parseSize reads a number of bytes such as 4GiB.
func parseSize(s string) (int64, error) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	unit := map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
		"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[m[2]]
	if n > (1<<62)/unit {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return n * unit, nil
}

func (p *configParser) size(l leaf, key string, lo, hi int64, to *int64) {
	if !p.given(l, key) {
		return
	}
	n, err := parseSize(l.text)
	switch {
	case err != nil:
		p.fail(l.line, key, "write it as 512MiB or 4GiB", "%v", err)
	case n < lo || n > hi:
		p.fail(l.line, key, fmt.Sprintf("choose one from %dMiB to %dGiB", lo>>20, hi>>30), "%s is out of range", l.text)
	}
	*to = n
}

func (p *configParser) quality(l leaf, key string, to *pipeline.Quality) {
	if !p.given(l, key) {
		return
	}
	switch q := pipeline.Quality(l.text); q {
	case pipeline.Off, pipeline.Fast, pipeline.High:
		*to = q
	default:
		p.fail(l.line, key, "write off, fast or high", "%q is not a quality", l.text)
	}
}

// aeTitle checks PS3.5 6.2: at most 16 characters, not all spaces, no
// backslash or control character; spaces around it have no meaning.
func (p *configParser) aeTitle(line int, ae, key string) {
	ok := len(ae) >= 1 && len(ae) <= 16 && strings.TrimSpace(ae) == ae
	for _, c := range []byte(ae) {
		ok = ok && c >= ' ' && c <= '~' && c != '\\'
	}
	if !ok {
		p.fail(line, key, "write 1 to 16 letters, digits or signs without spaces around them", "%q is not an AE title", ae)
	}
}

func splitAddress(s string) (host string, port int) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", -1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 65535 {
		return host, -1
	}
	return host, n
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?$`)

// address checks host:port. A listener may leave the host out and ask for any
// free port with 0.
func (p *configParser) address(l leaf, key string, listen bool, to *string) {
	if !p.given(l, key) {
		return
	}
	host, port := splitAddress(l.text)
	fix := `write it as "10.1.2.9:104" or "pacs.hospital.org:104"`
	if listen {
		fix = `write it as ":11112" for every network card, or "10.1.2.3:11112"`
	}
	_, ipErr := netip.ParseAddr(host)
	switch {
	case port < 0, host != "" && ipErr != nil && !hostForm.MatchString(host):
		p.fail(l.line, key, fix, "%q is not an address", l.text)
	case !listen && (host == "" || port == 0):
		p.fail(l.line, key, fix, "%q lacks the host or the port", l.text)
	}
	*to = l.text
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (p *configParser) config(f *file) *Config {
	c := DefaultConfig()
	p.text(f.StateDir, "state_dir", &c.StateDir)
	if !filepath.IsAbs(c.StateDir) {
		p.fail(f.StateDir.line, "state_dir", "write the whole path, as /var/lib/denoised", "%q is not an absolute path", c.StateDir)
	}
	c.StateDir = filepath.Clean(c.StateDir)
	p.dicom(f, c)
	p.duration(f.Series.Quiet, "series.quiet", 100*time.Millisecond, time.Hour, &c.Series.Quiet)
	p.duration(f.Series.QuietOpen, "series.quiet_open", 100*time.Millisecond, 24*time.Hour, &c.Series.QuietOpen)
	p.duration(f.Series.Max, "series.max", time.Second, 7*24*time.Hour, &c.Series.Max)
	p.rules(f, c)
	p.destinations(f, c)
	p.denoise(f, c)
	p.http(f, c)
	p.ports(f, c)
	p.watch(f, c)
	p.duration(f.Retention.AfterForward, "retention.after_forward", time.Second, 10*365*24*time.Hour, &c.Retention.AfterForward)
	fraction := func(x float64) bool { return x > 0 && x <= 1 }
	p.number(f.Retention.DiskWarn, "retention.disk_warn", "write a part of the disk between 0 and 1, as 0.80", fraction, &c.Retention.DiskWarn)
	p.number(f.Retention.DiskRefuse, "retention.disk_refuse", "write a part of the disk between 0 and 1, as 0.90", fraction, &c.Retention.DiskRefuse)
	if c.Retention.DiskWarn > c.Retention.DiskRefuse {
		p.fail(f.Retention.DiskWarn.line, "retention.disk_warn", "make disk_warn the smaller one", "%g is above disk_refuse, %g", c.Retention.DiskWarn, c.Retention.DiskRefuse)
	}
	p.text(f.Log.Level, "log.level", &c.Log.Level)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		p.fail(f.Log.Level.line, "log.level", "write debug, info, warn or error", "%q is not a level", c.Log.Level)
	}
	return c
}

func (p *configParser) dicom(f *file, c *Config) {
	d := &f.DICOM
	p.address(d.Listen, "dicom.listen", true, &c.DICOM.Listen)
	if p.lineOf("dicom.ae_titles") > 0 && d.AETitles != nil {
		c.DICOM.AETitles = map[string]pipeline.Quality{}
		for _, ae := range slices.Sorted(maps.Keys(d.AETitles)) {
			l, key := d.AETitles[ae], "dicom.ae_titles."+ae
			p.aeTitle(l.line, ae, key)
			q := pipeline.Fast
			p.quality(l, key, &q)
			c.DICOM.AETitles[ae] = q
		}
		if len(c.DICOM.AETitles) == 0 {
			p.fail(0, "dicom.ae_titles", "write at least {DENOISE: fast}", "no AE title, so that nobody could send")
		}
	}
	for i, in := range d.Peers {
		key := fmt.Sprintf("dicom.peers[%d]", i)
		var peer Peer
		p.text(in.AETitle, key+".ae_title", &peer.AETitle)
		p.aeTitle(in.AETitle.line, peer.AETitle, key+".ae_title")
		for j, l := range in.Hosts {
			key := fmt.Sprintf("%s.hosts[%d]", key, j)
			if !p.item(l, key) {
				continue
			}
			prefix, err := netip.ParsePrefix(l.text)
			if err != nil {
				var a netip.Addr
				if a, err = netip.ParseAddr(l.text); err == nil {
					prefix = netip.PrefixFrom(a, a.BitLen())
				}
			}
			if err != nil {
				p.fail(l.line, key, "write a network as 10.1.2.0/24 or an address as 10.1.2.17", "%q is neither", l.text)
			}
			peer.Hosts = append(peer.Hosts, prefix.Masked())
		}
		c.DICOM.Peers = append(c.DICOM.Peers, peer)
	}
	for i, l := range d.Admit {
		key := fmt.Sprintf("dicom.admit[%d]", i)
		if !p.item(l, key) {
			continue
		}
		if err := derive.CheckAdmit(l.text); err != nil {
			p.fail(l.line, key, "write the words that the reason unknown-kind names, as [SWI]", "%v", err)
		}
		c.DICOM.Admit = append(c.DICOM.Admit, l.text)
	}
	t := &c.DICOM.TLS
	if d.TLS.Listen.text != "" {
		p.address(d.TLS.Listen, "dicom.tls.listen", true, &t.Listen)
	}
	p.text(d.TLS.Cert, "dicom.tls.cert", &t.Cert)
	p.text(d.TLS.Key, "dicom.tls.key", &t.Key)
	p.text(d.TLS.ClientCA, "dicom.tls.client_ca", &t.ClientCA)
	if t.Listen != "" {
		for key, v := range map[string]string{"dicom.tls.cert": t.Cert, "dicom.tls.key": t.Key} {
			if v == "" {
				p.fail(d.TLS.Listen.line, key, "name the PEM file, or leave dicom.tls.listen empty", "missing, and dicom.tls.listen is set")
			}
		}
	}
	if (t.Cert == "") != (t.Key == "") && t.Listen == "" {
		p.fail(0, "dicom.tls", "give both cert and key, or neither", "a certificate and its key belong together")
	}
	p.integer(d.Limits.Associations, "dicom.limits.associations", 1, 4096, &c.DICOM.Limits.Associations)
	p.integer(d.Limits.PerHost, "dicom.limits.per_host", 1, 4096, &c.DICOM.Limits.PerHost)
	p.size(d.Limits.Object, "dicom.limits.object", 1<<20, 64<<30, &c.DICOM.Limits.Object)
	p.duration(d.Timeouts.Request, "dicom.timeouts.request", time.Second, 5*time.Minute, &c.DICOM.Timeouts.Request)
	p.duration(d.Timeouts.Idle, "dicom.timeouts.idle", time.Second, 24*time.Hour, &c.DICOM.Timeouts.Idle)
	p.duration(d.Timeouts.Store, "dicom.timeouts.store", time.Second, 24*time.Hour, &c.DICOM.Timeouts.Store)
}

func (p *configParser) rules(f *file, c *Config) {
	seen := map[string]bool{}
	for i, in := range f.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		r := pipeline.Rule{Name: fmt.Sprintf("#%d", i+1)}
		p.text(in.Name, key+".name", &r.Name)
		if seen[r.Name] {
			p.fail(in.Name.line, key+".name", "give every rule a name of its own", "%q is there twice", r.Name)
		}
		seen[r.Name] = true
		if p.text(in.When, key+".when", &r.When); r.When == "" {
			p.fail(in.When.line, key+".when", `write a condition as 'ProtocolName endsWith "_HQ"'`, "missing")
		}
		if p.quality(in.Quality, key+".quality", &r.Quality); !in.Quality.set {
			p.fail(0, key+".quality", "write off, fast or high", "missing")
		} else if r.Quality != "" && r.When != "" {
			if err := pipeline.CheckRules([]pipeline.Rule{r}); err != nil {
				p.fail(in.When.line, key+".when", "names are DICOM keywords as ProtocolName; text stands in double quotes", "%s", oneLine(err))
			}
		}
		c.Rules = append(c.Rules, r)
	}
}

// oneLine keeps the first line of an error: what follows points at a place with
// spaces and a caret.
func oneLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimSpace(line)
}

func (p *configParser) destinations(f *file, c *Config) {
	seen := map[string]bool{}
	for i, in := range f.Destinations {
		key := fmt.Sprintf("destinations[%d]", i)
		d := Destination{}
		p.text(in.Name, key+".name", &d.Name)
		switch {
		case !nameForm.MatchString(d.Name):
			p.fail(in.Name.line, key+".name", "write up to 64 letters, digits, '.', '_' or '-'", "%q is not a name", d.Name)
		case seen[d.Name]:
			p.fail(in.Name.line, key+".name", "give every destination a name of its own", "%q is there twice", d.Name)
		}
		seen[d.Name] = true
		p.text(in.AETitle, key+".ae_title", &d.AETitle)
		p.aeTitle(in.AETitle.line, d.AETitle, key+".ae_title")
		if p.address(in.Address, key+".address", false, &d.Address); !in.Address.set {
			p.fail(0, key+".address", `write it as "10.1.2.9:104"`, "missing")
		}
		for j, l := range in.Send {
			key := fmt.Sprintf("%s.send[%d]", key, j)
			if !p.item(l, key) {
				continue
			}
			if l.text != "original" && l.text != "derived" || slices.Contains(d.Send, l.text) {
				p.fail(l.line, key, "write [original], [derived] or [original, derived]", "%q is not known, or there twice", l.text)
			}
			d.Send = append(d.Send, l.text)
		}
		switch {
		case in.Send == nil:
			d.Send = []string{"original", "derived"}
		case len(in.Send) == 0:
			p.fail(0, key+".send", "write [original], [derived] or [original, derived]", "empty, so that nothing would be sent")
		}
		if p.boolean(in.Commitment, key+".commitment", &d.Commitment); d.Commitment {
			p.fail(in.Commitment.line, key+".commitment", "write false; a delivery counts when the archive has answered the C-STORE with success", "storage commitment is not in this version")
		}
		p.boolean(in.TLS, key+".tls", &d.TLS)
		c.Destinations = append(c.Destinations, d)
	}
}

func (p *configParser) denoise(f *file, c *Config) {
	d := &f.Denoise
	p.text(d.Backend, "denoise.backend", &c.Denoise.Backend)
	switch c.Denoise.Backend {
	case "auto", "cpu", "cuda":
	default:
		p.fail(d.Backend.line, "denoise.backend", "write auto, cpu or cuda", "%q is not a backend", c.Denoise.Backend)
	}
	p.integer(d.Workers, "denoise.workers", 0, 1024, &c.Denoise.Workers)
	if p.text(d.Model, "denoise.model", &c.Denoise.Model); c.Denoise.Model == "" {
		p.fail(d.Model.line, "denoise.model", "write default, or the folder of a model", "empty")
	}
	p.text(d.RadiographModel, "denoise.radiograph_model", &c.Denoise.RadiographModel)
	if c.Denoise.RadiographModel == "" {
		p.fail(d.RadiographModel.line, "denoise.radiograph_model", "write radiograph, or the folder of a model",
			"empty")
	}
	p.number(d.Strength, "denoise.strength", "write a number above 0 and up to 1 (to denoise nothing, use quality off)",
		func(x float64) bool { return x > 0 && x <= 1 }, &c.Denoise.Strength)
	p.boolean(d.HighAdapt, "denoise.high_adapt", &c.Denoise.HighAdapt)
}

func (p *configParser) http(f *file, c *Config) {
	h := &f.HTTP
	p.address(h.Listen, "http.listen", true, &c.HTTP.Listen)
	if !isLoopback(c.HTTP.Listen) {
		p.fail(h.Listen.line, "http.listen", `keep it at "127.0.0.1:8042" and reach it through an SSH tunnel (ssh -L 8042:127.0.0.1:8042 HOST) or a reverse proxy with a login`,
			"%q can be reached from other machines, and logins are not in this version", c.HTTP.Listen)
	}
	if p.text(h.UsersFile, "http.users_file", &c.HTTP.UsersFile); c.HTTP.UsersFile != "" {
		p.fail(h.UsersFile.line, "http.users_file", "leave it empty; for people on other machines use an SSH tunnel or a reverse proxy with a login", "logins are not in this version")
	}
}

// ports refuses two listeners on one port.
func (p *configParser) ports(f *file, c *Config) {
	type listener struct {
		key, address string
		line         int
	}
	list := []listener{{"dicom.listen", c.DICOM.Listen, f.DICOM.Listen.line}, {"dicom.tls.listen", c.DICOM.TLS.Listen, f.DICOM.TLS.Listen.line}, {"http.listen", c.HTTP.Listen, f.HTTP.Listen.line}}
	for i, l := range list {
		host, port := splitAddress(l.address)
		for _, o := range list[:i] {
			if h, n := splitAddress(o.address); port > 0 && n == port && (h == host || h == "" || host == "") {
				p.fail(max(l.line, o.line), l.key, "give each a port of its own, as 11112, 2762 and 8042", "%q is the port of %s, too", l.address, o.key)
			}
		}
	}
}

// isLoopback tells whether only this machine can reach a listener at address.
func isLoopback(address string) bool {
	host, _ := splitAddress(address)
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func (p *configParser) watch(f *file, c *Config) {
	for i, in := range f.Watch {
		key := fmt.Sprintf("watch[%d]", i)
		w := WatchFolder{Quality: pipeline.Fast}
		p.text(in.Dir, key+".dir", &w.Dir)
		if !filepath.IsAbs(w.Dir) {
			p.fail(in.Dir.line, key+".dir", "write the whole path, as /srv/in", "%q is not an absolute path", w.Dir)
		}
		w.Dir = filepath.Clean(w.Dir)
		if w.Dir == c.StateDir || strings.HasPrefix(w.Dir, c.StateDir+string(filepath.Separator)) {
			p.fail(in.Dir.line, key+".dir", "use a folder outside state_dir", "%q is inside state_dir", w.Dir)
		}
		if slices.ContainsFunc(c.Watch, func(o WatchFolder) bool { return o.Dir == w.Dir }) {
			p.fail(in.Dir.line, key+".dir", "name every folder once", "%q is there twice", w.Dir)
		}
		p.quality(in.Quality, key+".quality", &w.Quality)
		c.Watch = append(c.Watch, w)
	}
}
