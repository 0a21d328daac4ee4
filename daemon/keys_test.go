package daemon

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// lostKeys are files of which the decoder alone would drop a part.
var lostKeys = []struct {
	text string
	line int
}{
	{"denoise: {backend: cpu, workers: 3, strength: 0,7}\n", 1},
	{"retention: {after_forward: 720h, disk_warn: 0,50}\n", 1},
	{"log: {level: debug}\n5: x\n", 2},
	{"log:\n  level: debug\n  true: x\n", 3},
	{"log:\n  level: debug\n  1.5: x\n", 3},
	{"log:\n  level: debug\n  ~: x\n", 3},
	{"log:\n  level: debug\n  ? [a, b]\n  : x\n", 4}, // told by the parser
	{"log:\n  level: debug\n  level: info\n", 3},
	{"dicom:\n  ae_titles: {DN: fast, 7: high}\n", 2},
	{"dicom:\n  ae_titles: {DN: fast, DN: high}\n", 2},
	{"dicom:\n  peers:\n    - {ae_title: MR1, hosts: [10.1.2.3], 4: x}\n", 3},
	{"log: &a {level: debug}\n", 1},
	{"log:\n  <<: {level: debug}\n", 2},
	{"log: !!map {level: debug}\n", 1},
}

// TestLostKeys: what would be lost is an error with its line.
func TestLostKeys(t *testing.T) {
	for _, c := range lostKeys {
		_, err := parseConfig("f.yaml", []byte(c.text))
		var ce *ConfigError
		if !errors.As(err, &ce) {
			t.Errorf("%q: error is %v, want a *ConfigError", c.text, err)
			continue
		}
		if ce.Line != c.line {
			t.Errorf("%q: %v, want line %d", c.text, err, c.line)
		}
	}
}

// leaves lists the lines of all values that were read into v.
func leaves(v reflect.Value) (lines []int) {
	if l, ok := v.Interface().(leaf); ok {
		if l.set {
			return []int{l.line}
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			lines = append(lines, leaves(v.Field(i))...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			lines = append(lines, leaves(v.Index(i))...)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			lines = append(lines, leaves(v.MapIndex(k))...)
		}
	}
	return lines
}

// valueFinder lists the lines of all values of a tree but null.
type valueFinder struct{ lines []int }

func (f *valueFinder) add(n ast.Node) {
	for {
		tag, ok := n.(*ast.TagNode)
		if !ok {
			break
		}
		n = tag.Value
	}
	switch n.(type) {
	case *ast.NullNode:
	case ast.ScalarNode:
		f.lines = append(f.lines, n.GetToken().Position.Line)
	}
}

func (f *valueFinder) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.MappingValueNode:
		f.add(n.Value)
	case *ast.SequenceNode:
		for _, item := range n.Values {
			f.add(item)
		}
	}
	return f
}

// FuzzNoKeyLost: of a file that is accepted every value has been read, once.
func FuzzNoKeyLost(f *testing.F) {
	for _, c := range lostKeys {
		f.Add(c.text)
	}
	f.Add("log: {level: debug}\nwatch:\n- dir: /srv/two\ndicom:\n  ae_titles: {DN: fast, \"7\": high}\n")
	f.Add("denoise:\nrules:\n  - when: |\n      ImageType contains \"ADC\"\n    quality: off\n")
	f.Add("retention: {disk_warn: !!float 0.5, after_forward: ~}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := parseConfig("f.yaml", []byte(text)); err != nil {
			return
		}
		tree, err := parser.ParseBytes([]byte(text), 0)
		if err != nil {
			t.Fatalf("accepted, but not YAML: %v", err)
		}
		for _, d := range tree.Docs {
			if d.Body == nil {
				continue
			}
			var want valueFinder
			ast.Walk(&want, d.Body)
			var read file
			if err := yaml.NodeToValue(d.Body, &read, yaml.Strict()); err != nil {
				t.Fatal(err)
			}
			got := leaves(reflect.ValueOf(read))
			slices.Sort(got)
			slices.Sort(want.lines)
			if !slices.Equal(got, want.lines) {
				t.Errorf("values on lines %v, read on lines %v", want.lines, got)
			}
		}
	})
}
