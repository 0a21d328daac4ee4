package daemon

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// watchedListener knows whether somebody waits in Accept: that is what "the
// port is being served" means, and it costs a scanner nothing to find out.
type watchedListener struct {
	net.Listener

	mu      sync.Mutex
	waiting int       // calls of Accept that have not returned
	since   time.Time // when Accept returned last
	failing time.Time // since when Accept has only failed; zero: it has not
	err     error
}

func watched(l net.Listener) *watchedListener {
	return &watchedListener{Listener: l, since: time.Now()}
}

// Accept notes that the loop is alive.
func (l *watchedListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.waiting++
	l.mu.Unlock()
	c, err := l.Listener.Accept()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	l.since = time.Now()
	switch {
	case err == nil:
		l.failing, l.err = time.Time{}, nil
	case l.failing.IsZero():
		l.failing, l.err = l.since, err
	default:
		l.err = err
	}
	return c, err
}

// Limits of a healthy accept loop.
const (
	maxAcceptPause = 10 * time.Second // between two calls of Accept
	maxAcceptFails = 10 * time.Second // of nothing but errors
)

// check returns an error when connections are not being accepted.
func (l *watchedListener) check(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == 0 {
		if d := now.Sub(l.since); d > maxAcceptPause {
			return fmt.Errorf("%v: nobody has accepted connections for %v", l.Addr(), d.Round(time.Second))
		}
	}
	if !l.failing.IsZero() && now.Sub(l.failing) > maxAcceptFails {
		return fmt.Errorf("%v: accepting connections fails: %w", l.Addr(), l.err)
	}
	return nil
}
