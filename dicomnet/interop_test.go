package dicomnet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/internal/testdata"
)

// part10 wraps a data set into a file, with just enough meta information.
func part10(class, instance, transfer string, data []byte) []byte {
	var meta []byte
	ui := func(elem uint16, uid string) {
		if len(uid)%2 == 1 {
			uid += "\x00"
		}
		meta = append(meta, 2, 0, byte(elem), byte(elem>>8), 'U', 'I', byte(len(uid)), 0)
		meta = append(meta, uid...)
	}
	meta = append(meta, 2, 0, 1, 0, 'O', 'B', 0, 0, 2, 0, 0, 0, 0, 1)
	ui(2, class)
	ui(3, instance)
	ui(0x10, transfer)
	ui(0x12, dicomnet.ImplementationClassUID)
	out := append(make([]byte, 128), "DICM"...)
	out = append(out, 2, 0, 0, 0, 'U', 'L', 4, 0)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(meta)))
	return append(append(out, meta...), data...)
}

// object is a small valid MR data set in Explicit VR Little Endian.
func object(class, instance string) []byte {
	var out []byte
	add := func(group, elem uint16, vr, value string) {
		if len(value)%2 == 1 {
			value += map[bool]string{true: "\x00", false: " "}[vr == "UI"]
		}
		out = append(out, byte(group), byte(group>>8), byte(elem), byte(elem>>8), vr[0], vr[1])
		if vr == "OW" {
			out = binary.LittleEndian.AppendUint32(append(out, 0, 0), uint32(len(value)))
		} else {
			out = append(out, byte(len(value)), byte(len(value)>>8))
		}
		out = append(out, value...)
	}
	us := func(group, elem uint16, v uint16) { add(group, elem, "US", string([]byte{byte(v), byte(v >> 8)})) }
	add(8, 0x16, "UI", class)
	add(8, 0x18, "UI", instance)
	add(8, 0x60, "CS", "MR")
	add(0x10, 0x10, "PN", "Phantom^Test")
	add(0x20, 0x0d, "UI", "1.2.826.0.1.1")
	add(0x20, 0x0e, "UI", "1.2.826.0.1.2")
	us(0x28, 2, 1)
	add(0x28, 4, "CS", "MONOCHROME2")
	us(0x28, 0x10, 256)
	us(0x28, 0x11, 256)
	us(0x28, 0x100, 16)
	us(0x28, 0x101, 12)
	us(0x28, 0x102, 11)
	us(0x28, 0x103, 0)
	add(0x7fe0, 0x10, "OW", string(Pattern(256*256*2)))
	return out
}

// run runs a program and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// DCMTK's senders against our server: every byte arrives as it was in the file.
func TestDCMTKSenders(t *testing.T) {
	testdata.Peer(t, "echoscu", "storescu", "dcmsend")
	s := start(t, nil)
	_, port, _ := net.SplitHostPort(s.addr)
	run(t, "echoscu", "-v", "127.0.0.1", port)

	dir := t.TempDir()
	want := map[string][]byte{}
	for i := range 5 {
		uid := fmt.Sprintf("1.2.826.0.1.3.%d", i)
		want[uid] = object(mr, uid)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.dcm", i)), part10(mr, uid, evle, want[uid]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, sender := range [][]string{
		{"storescu", "-aec", "SCP", "+sd", "127.0.0.1", port, dir},
		{"storescu", "-aec", "SCP", "--max-pdu", "4096", "+sd", "127.0.0.1", port, dir},
		{"storescu", "-aec", "SCP", "--max-pdu", "131072", "--max-send-pdu", "131072", "+sd", "127.0.0.1", port, dir},
		{"dcmsend", "-aec", "SCP", "+sd", "127.0.0.1", port, dir},
		{"dcmsend", "-aec", "SCP", "--multi-associations", "+sd", "127.0.0.1", port, dir},
	} {
		t.Run(strings.Join(sender[:len(sender)-3], " "), func(t *testing.T) {
			s.rec.Reset()
			run(t, sender[0], sender[1:]...)
			whole := s.rec.Whole()
			if len(whole) != len(want) {
				t.Fatalf("%d objects, want %d", len(whole), len(want))
			}
			for _, o := range whole {
				if d := Same(o.Data, want[o.Request.SOPInstanceUID]); d != "" {
					t.Errorf("%s: %s", o.Request.SOPInstanceUID, d)
				}
			}
		})
	}
}

// receiver starts a program that listens on a free port and returns the port.
func receiver(t *testing.T, name string, args func(port string) []string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd := exec.Command(name, args(port)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	eventually(t, name+" to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return port
}

// Our client against DCMTK's receivers, with their smallest and largest PDUs.
func TestDCMTKReceivers(t *testing.T) {
	testdata.Peer(t, "storescp", "dcmrecv")
	for _, c := range []struct {
		name string
		args func(dir, port string) []string
	}{
		{"storescp", func(dir, port string) []string { return []string{"+B", "-od", dir, "-pdu", "4096", port} }},
		{"storescp", func(dir, port string) []string { return []string{"+B", "-od", dir, "-pdu", "131072", port} }},
		{"dcmrecv", func(dir, port string) []string { return []string{"+B", "-od", dir, port} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			args := func(port string) []string { return c.args(dir, port) }
			if c.name == "dcmrecv" { // accepts only what a file lists
				cfg := filepath.Join(t.TempDir(), "cfg")
				text := "[[TransferSyntaxes]]\n[U]\nTransferSyntax1 = LittleEndianExplicit\n[[PresentationContexts]]\n[P]\n" +
					"PresentationContext1 = VerificationSOPClass\\U\nPresentationContext2 = MRImageStorage\\U\n[[Profiles]]\n[D]\nPresentationContexts = P\n"
				if err := os.WriteFile(cfg, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				args = func(port string) []string { return append([]string{"-xf", cfg, "D"}, c.args(dir, port)...) }
			}
			port := receiver(t, c.name, args)
			d := &dicomnet.Dialer{CallingAETitle: "US", CalledAETitle: "THEM"}
			a, err := d.Dial(t.Context(), "127.0.0.1:"+port, []dicomnet.PresentationContext{
				{AbstractSyntax: mr, TransferSyntaxes: []string{evle}},
				{AbstractSyntax: dicomnet.VerificationSOPClass, TransferSyntaxes: []string{evle}},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Abort()
			if status, err := a.Echo(t.Context()); err != nil || status != 0 {
				t.Errorf("echo: %v, %v", status, err)
			}
			sent := map[string]bool{}
			for i := range 5 {
				uid := "1.2.826.0.1.4." + strconv.Itoa(i)
				data := object(mr, uid)
				status, err := a.Store(t.Context(), &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: uid, TransferSyntaxUID: evle}, bytes.NewReader(data))
				if err != nil || status != 0 {
					t.Fatalf("%v, %v", status, err)
				}
				sent[string(data)] = true
			}
			if err := a.Release(t.Context()); err != nil {
				t.Error(err)
			}
			err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				file, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				for data := range sent {
					if bytes.HasSuffix(file, []byte(data)) {
						delete(sent, data)
					}
				}
				return nil
			})
			if err != nil || len(sent) != 0 {
				t.Errorf("%d objects did not arrive bit by bit: %v", len(sent), err)
			}
		})
	}
}

// The interoperability corpus, one file after the other, through DCMTK's sender.
func TestRealObjects(t *testing.T) {
	testdata.Peer(t, "storescu")
	root := filepath.Join(testdata.Dir(t), "dicom", "series")
	s := start(t, nil)
	_, port, _ := net.SplitHostPort(s.addr)
	n := 0
	series, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range series {
		files, err := os.ReadDir(filepath.Join(root, dir.Name()))
		if err != nil || len(files) == 0 {
			continue
		}
		s.rec.Reset()
		run(t, "storescu", "-aec", "SCP", "+sd", "127.0.0.1", port, filepath.Join(root, dir.Name()))
		whole := s.rec.Whole()
		if len(whole) == 0 {
			t.Errorf("%s: nothing arrived", dir.Name())
		}
		n += len(whole)
	}
	t.Logf("%d objects of %d series", n, len(series))
}
