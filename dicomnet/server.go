package dicomnet

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// DefaultMaxPDULength is announced unless set otherwise, and is the largest
// P-DATA-TF that this package ever sends, in bytes.
const DefaultMaxPDULength = 128 << 10

// Bounds of Server.MaxPDULength and Dialer.MaxPDULength.
const (
	minPDULength = 4 << 10
	maxPDULength = 16 << 20
)

// Limits bounds what peers may use.
type Limits struct {
	Associations int   // at a time; default 64. Above, peers get 2/3/2
	PerHost      int   // at a time from one address; default 16. Above, peers get 2/3/2
	Connections  int   // that are not, or no longer, associations; default 256. Above, the oldest is closed
	ObjectBytes  int64 // of one data set; default 4 GiB. Above, peers get 0xA700
}

// Timeouts bounds how long peers may take. Time that the Session spends does
// not count.
type Timeouts struct {
	Request  time.Duration // from connect to the whole A-ASSOCIATE-RQ, TLS handshake included; default 10 s
	Idle     time.Duration // between messages; default 60 s
	Store    time.Duration // for one whole message with its object; default 300 s
	Release  time.Duration // for the peer to close after the last PDU (ARTIM); default 10 s
	Progress time.Duration // over which a peer inside a message must deliver 1 KiB/s; default 30 s
	Write    time.Duration // for the peer to take a response; default 30 s
}

// Server accepts associations. Set the fields before Serve and leave them
// alone afterwards; but for Handler, zero values mean the defaults.
type Server struct {
	Handler Handler // required

	// MaxPDULength is announced to peers, 4 KiB to 16 MiB; default 131072.
	MaxPDULength uint32
	// VersionName is announced as Implementation Version Name, ≤ 16 bytes; default
	// [ImplementationVersionName].
	VersionName string
	Limits      Limits
	Timeouts    Timeouts
	TLSConfig   *tls.Config // nil: plain TCP
	Logger      *zap.Logger // default none

	// AllowAddr, if set, is asked before anything is read; false closes.
	AllowAddr func(net.Addr) bool
	// Negotiate decides on one presentation context and names the transfer
	// syntax, one of those offered; default [AcceptStorage].
	Negotiate func(PresentationContext) (ContextResult, string)

	once sync.Once
	ctx  context.Context // of all handlers; ends with Close
	end  context.CancelFunc

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*serverConn]struct{}
	strangers *list.List // of *serverConn: not, or no longer, associations; oldest first
	perHost   map[string]int
	active    int
	requests  int64         // bytes reserved for large requests
	empty     chan struct{} // closed when closing and the last connection is gone
	emptied   bool
	noise     noise

	stats serverStats
}

type serverStats struct {
	connections, dropped, probes, accepted, rejected, aborted, released, echoes atomic.Int64
	stored, failed, bytes, panics                                               atomic.Int64
}

// Stats counts since the server was made; Active is now.
type Stats struct {
	Connections int64 // transport connections accepted
	Dropped     int64 // closed unread: address not allowed or too many strangers
	Probes      int64 // ended before a whole A-ASSOCIATE-RQ: port scans, garbage, silence
	Accepted    int64 // associations
	Rejected    int64 // associations, by A-ASSOCIATE-RJ
	Released    int64 // associations that ended in order
	Aborted     int64 // associations that ended otherwise
	Active      int   // associations
	Stored      int64 // C-STORE answered with success or warning
	Failed      int64 // C-STORE answered with failure
	Echoes      int64
	Bytes       int64 // of data sets, whether stored or not
	Panics      int64 // recovered in a Handler or Session
}

// Stats returns the counters. Safe for concurrent use.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	active := s.active
	s.mu.Unlock()
	c := &s.stats
	return Stats{
		Connections: c.connections.Load(), Dropped: c.dropped.Load(), Probes: c.probes.Load(),
		Accepted: c.accepted.Load(), Rejected: c.rejected.Load(), Released: c.released.Load(), Aborted: c.aborted.Load(),
		Active: active, Stored: c.stored.Load(), Failed: c.failed.Load(), Echoes: c.echoes.Load(),
		Bytes: c.bytes.Load(), Panics: c.panics.Load(),
	}
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// prepare fills defaults, once.
func (s *Server) prepare() {
	s.once.Do(func() {
		switch {
		case s.MaxPDULength == 0:
			s.MaxPDULength = DefaultMaxPDULength
		default:
			s.MaxPDULength = min(max(s.MaxPDULength, minPDULength), maxPDULength)
		}
		orDefault(&s.Limits.Associations, 64)
		orDefault(&s.Limits.PerHost, 16)
		orDefault(&s.Limits.Connections, 256)
		orDefault(&s.Limits.ObjectBytes, 4<<30)
		orDefault(&s.Timeouts.Request, 10*time.Second)
		orDefault(&s.Timeouts.Idle, 60*time.Second)
		orDefault(&s.Timeouts.Store, 300*time.Second)
		orDefault(&s.Timeouts.Release, 10*time.Second)
		orDefault(&s.Timeouts.Progress, 30*time.Second)
		orDefault(&s.Timeouts.Write, 30*time.Second)
		if s.Logger == nil {
			s.Logger = zap.NewNop()
		}
		if s.VersionName == "" {
			s.VersionName = ImplementationVersionName
		}
		if s.Negotiate == nil {
			s.Negotiate = AcceptStorage
		}
		s.ctx, s.end = context.WithCancel(context.Background())
		s.listeners = make(map[net.Listener]struct{})
		s.conns = make(map[*serverConn]struct{})
		s.strangers = list.New()
		s.perHost = make(map[string]int)
		s.empty = make(chan struct{})
	})
}

// Serve accepts associations from l until Shutdown or Close, and then returns
// ErrServerClosed, or until accepting fails for good. It closes l. It may be
// called for several listeners. Accepting never waits for a peer.
func (s *Server) Serve(l net.Listener) error {
	s.prepare()
	defer l.Close()
	if s.Handler == nil {
		return errors.New("dicomnet: server without a handler")
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	var pause time.Duration
	for {
		conn, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors or a peer that was gone: more of them will come.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.Logger.Warn("accept", zap.Error(err), zap.Duration("pause", pause))
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return ErrServerClosed
			}
			continue
		}
		pause = 0
		s.stats.connections.Add(1)
		if s.AllowAddr != nil && !s.AllowAddr(conn.RemoteAddr()) {
			s.stats.dropped.Add(1)
			s.noise.log(s.Logger, "connection from an address that is not allowed", conn.RemoteAddr(), nil)
			conn.Close()
			continue
		}
		if c := s.admit(conn); c != nil {
			go c.serve()
		}
	}
}

// admit registers a new connection as a stranger, at the cost of the oldest
// one if there are too many: an honest peer sends its request at once.
func (s *Server) admit(conn net.Conn) *serverConn {
	c := &serverConn{s: s, host: hostOf(conn.RemoteAddr()), addr: conn.RemoteAddr()}
	if s.TLSConfig != nil {
		conn = tls.Server(conn, s.TLSConfig)
	}
	c.t = newTransport(conn, s.MaxPDULength, s.Timeouts.Write, s.Timeouts.Progress)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		conn.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.addStranger(c)
	return c
}

func (s *Server) addStranger(c *serverConn) {
	if s.strangers.Len() >= s.Limits.Connections {
		oldest := s.strangers.Front().Value.(*serverConn)
		s.removeStranger(oldest)
		s.stats.dropped.Add(1)
		oldest.t.raw().Close()
	}
	c.stranger = s.strangers.PushBack(c)
}

func (s *Server) removeStranger(c *serverConn) {
	if c.stranger != nil {
		s.strangers.Remove(c.stranger)
		c.stranger = nil
	}
}

// maxRequests bounds the memory for association requests that do not fit into
// smallBuffer, all connections together: eight of the largest that are legal, or
// forty with every context and transfer syntax. Decoding takes about as much again.
const maxRequests = 8 << 20

// reserve sets n bytes aside for the request of c, at the cost of the strangers
// that have been at theirs for longest; false means that there is no room.
func (s *Server) reserve(c *serverConn, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.strangers.Front(); e != nil && s.requests+n > maxRequests; {
		o := e.Value.(*serverConn)
		e = e.Next()
		if o.reserved == 0 {
			continue
		}
		s.removeStranger(o)
		s.unreserveLocked(o)
		s.stats.dropped.Add(1)
		o.t.raw().Close()
	}
	if s.requests+n > maxRequests {
		return false
	}
	c.reserved = n
	s.requests += n
	return true
}

// unreserve gives back what reserve set aside.
func (s *Server) unreserve(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreserveLocked(c)
}

func (s *Server) unreserveLocked(c *serverConn) {
	s.requests -= c.reserved
	c.reserved = 0
}

// acquire takes a place for an association; false means that a limit is reached.
func (s *Server) acquire(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.active >= s.Limits.Associations || s.perHost[c.host] >= s.Limits.PerHost {
		return false
	}
	s.active++
	s.perHost[c.host]++
	c.holds = true
	s.removeStranger(c)
	return true
}

// release gives the place back, before the peer can know that it is free.
func (s *Server) release(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.holds {
		return
	}
	c.holds = false
	s.active--
	if s.perHost[c.host]--; s.perHost[c.host] == 0 {
		delete(s.perHost, c.host)
	}
	s.addStranger(c)
}

// forget is the end of a connection.
func (s *Server) forget(c *serverConn) {
	s.release(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeStranger(c)
	s.unreserveLocked(c)
	delete(s.conns, c)
	s.checkEmpty()
}

func (s *Server) checkEmpty() {
	if s.closing && len(s.conns) == 0 && !s.emptied {
		s.emptied = true
		close(s.empty)
	}
}

// stop closes the listeners and interrupts every connection.
func (s *Server) stop() {
	s.prepare()
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	conns := make([]*serverConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.checkEmpty()
	s.mu.Unlock()
	for _, c := range conns {
		c.t.interrupt()
	}
}

// Shutdown stops accepting, aborts associations that are between messages, lets
// a running message finish and be answered, and returns nil when all are gone.
// When ctx ends first it does what Close does and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	select {
	case <-s.empty:
		s.end()
		return nil
	case <-ctx.Done():
		s.Close()
		return ctx.Err()
	}
}

// Close stops accepting, ends the context of every handler and closes every
// connection. It does not wait for running handlers. It always returns nil.
func (s *Server) Close() error {
	s.stop()
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.t.raw().Close()
	}
	return nil
}

// hostOf is what PerHost counts by: the address without its port.
func hostOf(a net.Addr) string {
	if host, _, err := net.SplitHostPort(a.String()); err == nil {
		return host
	}
	return a.String()
}

// noise logs what strangers cause at most once a minute; all of it at debug level.
type noise struct {
	mu    sync.Mutex
	last  time.Time
	count int
}

func (n *noise) log(l *zap.Logger, what string, from net.Addr, err error) {
	l.Debug(what, zap.Stringer("remote", from), zap.Error(err))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count++
	if now := time.Now(); now.Sub(n.last) >= time.Minute {
		l.Warn(what, zap.Stringer("remote", from), zap.Error(err), zap.Int("since_last_line", n.count))
		n.last, n.count = now, 0
	}
}
