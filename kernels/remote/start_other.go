//go:build !linux

package remote

import (
	"errors"
	"net"
)

var errSystem = errors.New("worker processes are for Linux only")

func startProcess(*Options, func(string)) (net.Conn, process, error) { return nil, nil, errSystem }

// Inherited returns the connection that a worker process has been given as a descriptor.
func Inherited(int) (net.Conn, error) { return nil, errSystem }
