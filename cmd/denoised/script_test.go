package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/diffdenoise/denoised/internal/phantom"
)

// asProgram in the environment makes the test binary the program itself, for
// tests that start and kill it.
const asProgram = "DENOISED_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	testscript.Main(m, map[string]func(){"denoised": main})
}

// TestScripts runs the command lines of testdata/*.txt.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"PORT1", "PORT2", "PORT3"} {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				defer l.Close()
				env.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// phantom FOLDER N: writes N files of a small series.
			"phantom": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: phantom FOLDER N")
				}
				n, err := strconv.Atoi(args[1])
				ts.Check(err)
				dir := ts.MkAbs(args[0])
				ts.Check(os.MkdirAll(dir, 0o755))
				v := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: n, Sigma: 0.05})
				ids := phantom.NewIDs("script " + args[0])
				for i := range n {
					var b bytes.Buffer
					ts.Check(v.WriteDICOM(&b, i, ids))
					ts.Check(os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.dcm", i)), b.Bytes(), 0o644))
				}
			},
			// config FILE [LINES...]: writes a configuration for the free ports.
			"config": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) == 0 {
					ts.Fatalf("usage: config FILE [LINES...]")
				}
				text := fmt.Sprintf("state_dir: %s\ndicom: {listen: \"127.0.0.1:%s\"}\nhttp: {listen: \"127.0.0.1:%s\"}\nretention: {disk_warn: 0.99, disk_refuse: 0.999}\n",
					ts.MkAbs("state"), ts.Getenv("PORT1"), ts.Getenv("PORT2"))
				for _, l := range args[1:] {
					text += l + "\n"
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
			},
		},
	})
}
