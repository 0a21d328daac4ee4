// Command skips reads the output of `go test -json`, prints what a person wants
// to see of it, and fails if a test failed or if one was skipped that is not
// on the list of allowed skips: a skip must not hide a requirement.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type key struct{ pkg, test string }

func main() {
	file := flag.String("allow", "", "file of allowed skips: a regular expression over \"package test\" a line, # begins a comment")
	flag.Parse()
	os.Exit(run(*file))
}

func run(file string) int {
	allowed, err := readAllowed(file)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	output := make(map[key]*strings.Builder)
	passed, skipped, bad := 0, 0, 0
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadString('\n')
		if line == "" && err != nil {
			break
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Print(line) // messages of the go command itself
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			if output[k] == nil {
				output[k] = &strings.Builder{}
			}
			output[k].WriteString(e.Output)
			if e.Action == "build-output" {
				fmt.Print(e.Output)
			}
		case "pass":
			if e.Test == "" {
				fmt.Printf("ok    %7.1fs  %s\n", e.Elapsed, e.Package)
			} else {
				passed++
			}
		case "fail", "build-fail":
			bad++
			fmt.Printf("FAIL  %7.1fs  %s %s\n", e.Elapsed, e.Package, e.Test)
			if output[k] != nil {
				fmt.Print(output[k])
			}
		case "skip":
			if e.Test == "" {
				continue // a package without tests
			}
			skipped++
			reason := ""
			if output[k] != nil {
				reason = strings.TrimSpace(output[k].String())
			}
			word := "skip"
			if !match(allowed, e.Package+" "+e.Test) {
				bad++
				word = "SKIP NOT ALLOWED"
			}
			fmt.Printf("%s  %s %s\n%s\n", word, e.Package, e.Test, reason)
		}
		if e.Action == "pass" || e.Action == "skip" || e.Action == "fail" {
			delete(output, k)
		}
	}
	fmt.Printf("%d tests passed, %d skipped, %d findings\n", passed, skipped, bad)
	if bad > 0 || passed == 0 {
		return 1
	}
	return 0
}

func readAllowed(file string) ([]*regexp.Regexp, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []*regexp.Regexp
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		re, err := regexp.Compile("^(?:" + line + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, re)
	}
	return list, nil
}

func match(list []*regexp.Regexp, name string) bool {
	for _, re := range list {
		if re.MatchString(name) {
			return true
		}
	}
	return false
}
