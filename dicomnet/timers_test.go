package dicomnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// clock is a server on in-memory connections inside a synctest bubble, where
// hours pass at once.
type clock struct {
	*site
	l *Listener
}

func bubble(t *testing.T, change func(*dicomnet.Server, *Recorder), play func(t *testing.T, c *clock)) {
	synctest.Test(t, func(t *testing.T) {
		rec := &Recorder{}
		srv := &dicomnet.Server{Handler: rec}
		if change != nil {
			change(srv, rec)
		}
		l := NewListener()
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		play(t, &clock{&site{t: t, srv: srv, rec: rec}, l})
		srv.Close()
		if err := <-served; err != dicomnet.ErrServerClosed {
			t.Errorf("Serve returned %v", err)
		}
		synctest.Wait()
		if n := srv.Stats().Active; n != 0 {
			t.Errorf("%d associations are left", n)
		}
	})
}

// open connects a peer that is more patient than any timeout.
func (c *clock) open(t *testing.T) *Peer {
	conn, err := c.l.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	p := NewPeer(t, conn)
	p.Patience = 24 * time.Hour
	return p
}

// took measures what f waits for.
func took(t *testing.T, want time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if got := time.Since(start); got < want || got > want+2*time.Second {
		t.Errorf("took %v, want %v", got, want)
	}
}

// Case 41: silence at every stage, with the default timeouts.
func TestSilence(t *testing.T) {
	payload := Pattern(2000)
	t.Run("TCP only", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			took(t, 10*time.Second, p.ExpectClosed)
		})
	})
	t.Run("half a request, a byte a second", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			rq := Encode(t, Request(mr))
			dripped := make(chan struct{})
			took(t, 10*time.Second, func() {
				go func() {
					defer close(dripped)
					for _, b := range rq[:100] {
						p.SendRaw([]byte{b})
						time.Sleep(time.Second) // the peer's drip, on the bubble's clock
					}
				}()
				p.ExpectClosed()
			})
			p.Conn.Close()
			<-dripped
		})
	})
	t.Run("idle association", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			took(t, 60*time.Second, func() { p.Expect(pdu.TypeAbort) })
			took(t, 10*time.Second, p.ExpectClosed) // ARTIM: this peer never closes
			synctest.Wait()
			if cause := c.rec.Closed()[0]; !errors.Is(cause, dicomnet.ErrTimeout) {
				t.Errorf("cause: %v", cause)
			}
		})
	})
	t.Run("inside a data set", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)))
			took(t, 30*time.Second, func() { p.Expect(pdu.TypeAbort) })
			p.Conn.Close()
			synctest.Wait()
			if o := c.rec.Objects(); len(o) != 1 || !errors.Is(o[0].Err, dicomnet.ErrIncomplete) || !errors.Is(o[0].Err, dicomnet.ErrTimeout) {
				t.Errorf("the handler saw %+v", o)
			}
		})
	})
	t.Run("inside a PDU header", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			p.SendRaw([]byte{4, 0, 0})
			took(t, 30*time.Second, func() { p.Expect(pdu.TypeAbort) })
		})
	})
	t.Run("after release", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			p.Send(&pdu.ReleaseRQ{})
			p.Expect(pdu.TypeReleaseRP)
			took(t, 10*time.Second, p.ExpectClosed)
		})
	})
	t.Run("peer does not take its response", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), payload, 500)
			start := time.Now()
			for len(c.rec.Closed()) == 0 && time.Since(start) < time.Hour {
				time.Sleep(time.Second) // the bubble's clock
			}
			if d := time.Since(start); d < 29*time.Second || d > 32*time.Second {
				t.Errorf("gave up after %v, want 30s", d)
			}
		})
	})
}

// Case 42: a slow drip dies by the minimum rate, a slow but honest peer lives.
func TestMinimumRate(t *testing.T) {
	for _, c := range []struct {
		name  string
		chunk int
		dies  bool
	}{{"1 byte/s", 1, true}, {"500 bytes/s", 500, true}, {"2 KiB/s", 2048, false}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, k *clock) {
				p := k.open(t)
				associated(t, p)
				p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))))
				payload := Pattern(100 * 2048)
				b := Encode(t, data(frag(false, payload[:100_000])), data(frag(true, payload[100_000:])))
				stop := make(chan struct{})
				dripped := make(chan struct{})
				go func() {
					defer close(dripped)
					for len(b) > 0 {
						n := min(c.chunk, len(b))
						p.SendRaw(b[:n])
						b = b[n:]
						select {
						case <-time.After(time.Second):
						case <-stop:
							return
						}
					}
				}()
				if c.dies {
					took(t, 30*time.Second, func() { p.Expect(pdu.TypeAbort) })
				} else {
					p.ExpectStatus(dimse.StatusSuccess)
				}
				close(stop)
				p.Conn.Close()
				<-dripped
			})
		})
	}
}

// Timeouts.Store bounds one object, however steadily it comes.
func TestStoreTimeout(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *clock) {
		p := c.open(t)
		associated(t, p)
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))))
			for range 400 {
				p.Send(data(frag(false, make([]byte, 8000))))
				time.Sleep(time.Second) // the peer's pace, on the bubble's clock
			}
		}()
		took(t, 300*time.Second, func() { p.Expect(pdu.TypeAbort) })
		p.Conn.Close()
		<-done
	})
}

// A slow disk is not the peer's fault: time in the handler does not count.
func TestSlowHandler(t *testing.T) {
	bubble(t, func(_ *dicomnet.Server, rec *Recorder) {
		rec.OnStore = func(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
			var all []byte
			p := make([]byte, 700)
			for {
				n, err := r.Read(p)
				all = append(all, p[:n]...)
				if err == io.EOF {
					return all, 0, nil
				} else if err != nil {
					return nil, 0x0110, err
				}
				time.Sleep(2 * time.Minute) // a stalled disk, on the bubble's clock
			}
		}
	}, func(t *testing.T, c *clock) {
		p := c.open(t)
		p.Patience = 100 * time.Hour
		associated(t, p)
		p.SendStore(1, StoreRQ(1, mr, "1.2.3"), Pattern(10_000), 1000)
		p.ExpectStatus(dimse.StatusSuccess)
		if d := Same(c.rec.Whole()[0].Data, Pattern(10_000)); d != "" {
			t.Error(d)
		}
	})
}

// An association that keeps sending, with pauses below Idle, lives for hours.
func TestPausesBelowIdle(t *testing.T) {
	bubble(t, nil, func(t *testing.T, c *clock) {
		p := c.open(t)
		associated(t, p)
		for i := range 100 {
			p.SendStore(1, StoreRQ(uint16(i), mr, "1.2.3"), Pattern(1000), 300)
			p.ExpectStatus(dimse.StatusSuccess)
			time.Sleep(59 * time.Second) // the peer's pause, on the bubble's clock
		}
		p.Release()
	})
}

// Shutdown ends what waits at once, and what runs after its answer.
func TestShutdown(t *testing.T) {
	t.Run("idle, silent and storing", func(t *testing.T) {
		bubble(t, func(_ *dicomnet.Server, rec *Recorder) {
			rec.OnStore = func(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
				b, err := io.ReadAll(r)
				time.Sleep(20 * time.Second) // fsync, on the bubble's clock
				return b, 0, err
			}
		}, func(t *testing.T, c *clock) {
			idle, silent, storing := c.open(t), c.open(t), c.open(t)
			associated(t, idle)
			associated(t, storing)
			storing.SendStore(1, StoreRQ(1, mr, "1.2.3"), Pattern(5000), 1000)
			synctest.Wait()
			down := make(chan error, 1)
			go func() { down <- c.srv.Shutdown(context.Background()) }()
			took(t, 0, func() { idle.Expect(pdu.TypeAbort); idle.Conn.Close() })
			took(t, 0, silent.ExpectClosed)
			took(t, 20*time.Second, func() { storing.ExpectStatus(dimse.StatusSuccess) })
			storing.Expect(pdu.TypeAbort)
			storing.Conn.Close()
			if err := <-down; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if _, err := c.l.Dial(t.Context(), "", ""); err == nil {
				t.Error("the listener still accepts")
			}
			if len(c.rec.Whole()) != 1 {
				t.Error("the running store was lost")
			}
		})
	})
	t.Run("bounded by its context", func(t *testing.T) {
		bubble(t, func(_ *dicomnet.Server, rec *Recorder) {
			rec.OnStore = func(ctx context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
				_, err := io.Copy(io.Discard, r)
				<-ctx.Done()
				return nil, 0x0110, err
			}
		}, func(t *testing.T, c *clock) {
			p := c.open(t)
			associated(t, p)
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), Pattern(5000), 1000)
			ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
			defer cancel()
			took(t, 7*time.Second, func() {
				if err := c.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Shutdown: %v", err)
				}
			})
			p.ExpectClosed()
		})
	})
}

// dialer opens associations with the bubble's server or with a scripted one.
func memoryDialer(l *Listener) *dicomnet.Dialer {
	return &dicomnet.Dialer{CalledAETitle: "SCP", NetDial: l.Dial}
}

var mrContext = []dicomnet.PresentationContext{{AbstractSyntax: mr, TransferSyntaxes: []string{evle, ivle}}}

// Timeouts of the requestor, each on its own.
func TestDialerTimeouts(t *testing.T) {
	t.Run("connect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := NewListener() // nobody accepts
			took(t, 10*time.Second, func() {
				if _, err := memoryDialer(l).Dial(t.Context(), "pacs:104", mrContext); !errors.Is(err, dicomnet.ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
	t.Run("no answer to the request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := NewListener()
			go func() {
				conn, _ := l.Accept()
				io.Copy(io.Discard, conn)
			}()
			took(t, 120*time.Second, func() {
				if _, err := memoryDialer(l).Dial(t.Context(), "pacs:104", mrContext); !errors.Is(err, dicomnet.ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
	t.Run("no response to a store, then nothing goes", func(t *testing.T) {
		scripted(t, func(p *Peer) {
			p.Accept()
			p.ReadStore()
			p.Expect(pdu.TypeAbort)
			p.Conn.Close()
		}, func(t *testing.T, a *dicomnet.Association) {
			took(t, 120*time.Second, func() {
				if _, err := store(t, a, Pattern(1000)); !errors.Is(err, dicomnet.ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
			if _, err := store(t, a, Pattern(1000)); !errors.Is(err, dicomnet.ErrAssociationClosed) {
				t.Errorf("a second store: %v", err)
			}
		})
	})
	t.Run("peer stops reading inside a data set", func(t *testing.T) {
		scripted(t, func(p *Peer) {
			p.Accept()
			p.Expect(pdu.TypeDataTF)
			p.Expect(pdu.TypeDataTF)
			time.Sleep(200 * time.Second) // the bubble's clock: longer than anyone waits
		}, func(t *testing.T, a *dicomnet.Association) {
			took(t, 120*time.Second, func() {
				if _, err := store(t, a, Pattern(1_000_000)); !errors.Is(err, dicomnet.ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
	t.Run("no answer to a release", func(t *testing.T) {
		scripted(t, func(p *Peer) {
			p.Accept()
			p.Expect(pdu.TypeReleaseRQ)
			p.Expect(pdu.TypeAbort)
			p.Conn.Close()
		}, func(t *testing.T, a *dicomnet.Association) {
			took(t, 10*time.Second, func() {
				if err := a.Release(t.Context()); !errors.Is(err, dicomnet.ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
	t.Run("context ends while waiting", func(t *testing.T) {
		scripted(t, func(p *Peer) {
			p.Accept()
			p.ReadStore()
			p.Read()
			p.Conn.Close()
		}, func(t *testing.T, a *dicomnet.Association) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			took(t, 5*time.Second, func() {
				_, err := a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}, bytes.NewReader(Pattern(1000)))
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
	t.Run("Abort from outside", func(t *testing.T) {
		scripted(t, func(p *Peer) {
			p.Accept()
			p.ReadStore()
			p.Read()
			p.Conn.Close()
		}, func(t *testing.T, a *dicomnet.Association) {
			time.AfterFunc(3*time.Second, func() { a.Abort() })
			took(t, 3*time.Second, func() {
				if _, err := store(t, a, Pattern(1000)); !errors.Is(err, dicomnet.ErrAssociationClosed) {
					t.Errorf("got %v", err)
				}
			})
		})
	})
}

// scripted plays a called AE against an association, in a bubble.
func scripted(t *testing.T, called func(p *Peer), calling func(t *testing.T, a *dicomnet.Association)) {
	synctest.Test(t, func(t *testing.T) {
		l := NewListener()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		played := make(chan struct{})
		go func() {
			defer close(played)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p := NewPeer(t, conn)
			p.Patience = time.Hour
			called(p)
		}()
		a, err := memoryDialer(l).Dial(ctx, "pacs:104", mrContext)
		if err != nil {
			t.Fatal(err)
		}
		calling(t, a)
		a.Abort()
		l.Close()
		<-played
	})
}

func store(t *testing.T, a *dicomnet.Association, data []byte) (dicomnet.Status, error) {
	return a.Store(t.Context(), &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}, bytes.NewReader(data))
}
