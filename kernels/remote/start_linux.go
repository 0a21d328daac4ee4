package remote

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// startProcess starts a worker with one end of a connection as descriptor 3. Each line that it
// writes on its standard output and error goes to line.
func startProcess(o *Options, line func(string)) (net.Conn, process, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "worker")
	defer theirs.Close()
	conn, err := connection(fds[0])
	if err != nil {
		return nil, nil, err
	}
	closeOnExec()
	out := &lineWriter{line: line}
	c := &child{cmd: exec.Command(o.Program, o.Args...), ended: make(chan error, 1)}
	c.cmd.Env, c.cmd.ExtraFiles, c.cmd.Stdout, c.cmd.Stderr = o.Env, []*os.File{theirs}, out, out
	c.cmd.WaitDelay = time.Second // for a process of its own that keeps the output open
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, // it ends with this process, however that ends
		Setpgid:   true,            // a Ctrl-C on the terminal is for this process, which ends it in its time
	}
	started := make(chan error)
	go func() {
		// Pdeathsig means the end of the thread that started the process. This one is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			err := c.cmd.Wait()
			out.flush()
			c.ended <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, c, nil
}

// Inherited returns the connection that a worker process has been given as a descriptor.
func Inherited(fd int) (net.Conn, error) {
	if fd < 3 {
		return nil, fmt.Errorf("descriptor %d is no connection", fd)
	}
	syscall.CloseOnExec(fd)
	return connection(fd)
}

// connection takes a socket over.
func connection(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "worker")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is no connection", fd)
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			err = errno // without what it was called meanwhile
		}
		return nil, fmt.Errorf("descriptor %d is no connection: %w", fd, err)
	}
	if c, ok := conn.(*net.UnixConn); ok {
		// A slice at once, where the system allows it.
		_ = errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}
	return conn, nil
}

// socketBuffer is what the system is asked to buffer of a connection, bytes.
const socketBuffer = 4 << 20

// closeOnExec keeps from a worker what this process itself has inherited. What Go has opened is
// marked already.
func closeOnExec() {
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return // of a pattern that is right
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(filepath.Base(name)); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// child is a process.
type child struct {
	cmd   *exec.Cmd
	ended chan error
}

func (c *child) pid() int    { return c.cmd.Process.Pid }
func (c *child) kill()       { _ = c.cmd.Process.Kill() } // it may have ended
func (c *child) wait() error { return <-c.ended }

// lineWriter cuts what is written to it into lines.
type lineWriter struct {
	line func(string)
	rest []byte
}

// maxLine is the longest line in bytes; longer ones are cut into several.
const maxLine = 1000

// Write implements io.Writer.
func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		if room := maxLine - len(w.rest); len(part) > room {
			part, end = part[:room], -1
			w.rest = append(w.rest, part...)
			b = b[len(part):]
			w.flush()
			continue
		}
		w.rest = append(w.rest, part...)
		b = b[len(part):]
		if end >= 0 {
			b = b[1:]
			w.flush()
		}
	}
	return n, nil
}

// flush passes on what is there, as a line.
func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.line(string(w.rest))
		w.rest = w.rest[:0]
	}
}
