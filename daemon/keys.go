package daemon

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

var indexes = regexp.MustCompile(`\[\d+\]`)

// knownKeys lists the keys that may stand below a path such as dicom.limits or
// destinations[3], in the order of the default file.
func knownKeys(path string) []string {
	t := reflect.TypeFor[file]()
	for _, part := range strings.Split(indexes.ReplaceAllString(path, ""), ".") {
		for t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if part == "" || t.Kind() != reflect.Struct {
			continue
		}
		for i := range t.NumField() {
			if t.Field(i).Tag.Get("yaml") == part {
				t = t.Field(i).Type
				break
			}
		}
	}
	for t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	var keys []string
	if t.Kind() == reflect.Struct && t != reflect.TypeFor[leaf]() {
		keys = knownFields(t)
	}
	return keys
}

// checkKeys returns a *ConfigError for the first key of the tree that the decoder
// would lose. At a key that is no text, such as the 7 that a decimal comma in
// {strength: 0,7} makes, it drops the whole mapping without an error.
func checkKeys(path string, root ast.Node) error {
	type place struct {
		node ast.Node
		t    reflect.Type
		key  string
	}
	todo := []place{{root, reflect.TypeFor[file](), ""}}
	var first *ConfigError
	fail := func(n ast.Node, key, problem, fix string) {
		line := n.GetToken().Position.Line
		if first == nil || line < first.Line {
			first = &ConfigError{File: path, Line: line, Key: key, Problem: problem, Fix: fix}
		}
	}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if tag, ok := at.node.(*ast.TagNode); ok {
			if _, one := tag.Value.(ast.ScalarNode); !one || at.t != reflect.TypeFor[leaf]() {
				fail(tag, at.key, fmt.Sprintf("the tag %q is not read here", tag.GetToken().Value), "remove the tag")
			}
			continue
		}
		var pairs []*ast.MappingValueNode
		switch n := at.node.(type) {
		case *ast.MappingNode:
			pairs = n.Values
		case *ast.MappingValueNode:
			pairs = []*ast.MappingValueNode{n}
		case *ast.SequenceNode:
			if at.t.Kind() == reflect.Slice {
				for i, item := range n.Values {
					todo = append(todo, place{item, at.t.Elem(), fmt.Sprintf("%s[%d]", at.key, i)})
				}
			}
			continue
		}
		if at.t == reflect.TypeFor[leaf]() || at.t.Kind() == reflect.Slice {
			continue // told by the decoder or by configParser.given
		}
		seen := map[string]bool{}
		for _, pair := range pairs {
			name, ok := pair.Key.(*ast.StringNode)
			if !ok {
				fix := "write a decimal point, not a comma, and a key that is a number in quotes"
				fail(pair.Key, at.key, fmt.Sprintf("the key %q is no text", pair.Key.GetToken().Value), fix)
				continue
			}
			key := strings.TrimPrefix(at.key+"."+name.Value, ".")
			if seen[name.Value] {
				fail(pair.Key, key, "the key is there twice", "keep one of the two")
			}
			seen[name.Value] = true
			if at.t.Kind() == reflect.Map {
				todo = append(todo, place{pair.Value, at.t.Elem(), key})
				continue
			}
			i := slices.Index(knownFields(at.t), name.Value)
			if i < 0 {
				fail(pair.Key, key, "unknown key", "known here: "+strings.Join(knownFields(at.t), ", "))
				continue
			}
			todo = append(todo, place{pair.Value, at.t.Field(i).Type, key})
		}
	}
	if first != nil {
		return first
	}
	return nil
}

// knownFields lists the keys of a mapping that is read into the struct t.
func knownFields(t reflect.Type) []string {
	keys := make([]string, t.NumField())
	for i := range keys {
		keys[i] = t.Field(i).Tag.Get("yaml")
	}
	return keys
}
