package daemon

import (
	"reflect"
	"regexp"
	"strings"
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
		for i := range t.NumField() {
			keys = append(keys, t.Field(i).Tag.Get("yaml"))
		}
	}
	return keys
}
