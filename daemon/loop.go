package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
)

// An installation is known to others by its Implementation Version Name: that of
// every denoised, and five characters of its own, kept in state_dir. So a daemon
// sees when a destination is itself, and two daemons see that each is the other's
// destination: what they send would only go round.
const (
	installationPrefix = dicomnet.ImplementationVersionName + "_"
	installationLength = 16 // the longest version name, PS3.7 D.3.3.2.4
	identityFile       = "identity"
)

// isInstallation tells whether a peer is the forwarding or receiving side of a
// denoised, not one of its tools.
func isInstallation(p dicomnet.Implementation) bool {
	return p.ClassUID == dicomnet.ImplementationClassUID && len(p.VersionName) == installationLength &&
		strings.HasPrefix(p.VersionName, installationPrefix)
}

// readIdentity is the version name of the installation in a state folder, empty if
// it has none yet.
func readIdentity(stateDir string) string {
	b, err := os.ReadFile(filepath.Join(stateDir, identityFile))
	name := strings.TrimSpace(string(b))
	if err != nil || !isInstallation(dicomnet.Implementation{ClassUID: dicomnet.ImplementationClassUID,
		VersionName: name}) {
		return ""
	}
	return name
}

// identity reads the version name of the installation in a state folder, which
// exists, or makes one. If it cannot be written it holds until the end of the
// process, and the error says why.
func identity(stateDir string) (string, error) {
	if name := readIdentity(stateDir); name != "" {
		return name, nil
	}
	name := installationPrefix + rand.Text()[:installationLength-len(installationPrefix)]
	path := filepath.Join(stateDir, identityFile)
	f, err := os.CreateTemp(stateDir, identityFile+"-*")
	if err != nil {
		return name, fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.WriteString(name + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return name, errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return name, nil
}

const (
	identifyTimeout = 5 * time.Second // for a destination to answer who it is
	identifyAgain   = 10 * time.Minute
	identifyFailed  = time.Minute // after which one that did not answer is asked again
	// loopHolds is how long a destination that sent to us is not sent to: longer than the
	// longest pause of its retries, so that it is seen again if it still does.
	loopHolds = 20 * time.Minute
)

// place is a destination as far as who answers there is concerned.
type place struct {
	aet, address string
	tls          bool
}

func placeOf(d Destination) place { return place{d.AETitle, d.Address, d.TLS} }

// loops knows who the destinations are and which of them lead back. Safe for
// concurrent use.
type loops struct {
	ask func(ctx context.Context, p place) (dicomnet.Implementation, error) // who answers there

	mu     sync.Mutex
	known  map[place]known
	leads  map[place]time.Time // when a destination was last seen to send to us
	asking chan struct{}       // holds one while there is a round of questions
}

// known is who answered at a place; the zero peer if nobody did.
type known struct {
	peer dicomnet.Implementation
	at   time.Time
}

func newLoops(ask func(context.Context, place) (dicomnet.Implementation, error)) *loops {
	return &loops{ask: ask, known: map[place]known{}, leads: map[place]time.Time{}, asking: make(chan struct{}, 1)}
}

// learn notes who answered at a place.
func (l *loops) learn(p place, peer dicomnet.Implementation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known[p] = known{peer, time.Now()}
}

// identify asks the places whose answer is not known who they are, at once.
func (l *loops) identify(ctx context.Context, places []place) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
	case <-ctx.Done():
		return
	}
	var wg sync.WaitGroup
	for _, p := range places {
		l.mu.Lock()
		k, ok := l.known[p]
		l.mu.Unlock()
		age := time.Since(k.at)
		if ok && (age < identifyFailed || k.peer != dicomnet.Implementation{} && age < identifyAgain) {
			continue
		}
		wg.Go(func() {
			peer, _ := l.ask(ctx, p) // one that does not answer is nobody
			l.learn(p, peer)
		})
	}
	wg.Wait()
}

// sendsTo tells which of the destinations is the installation that sends to us from a host;
// false: none. If the host is the destination's, it notes that this leads back. What a peer calls
// itself is not verified: another host must not stop what we send.
func (l *loops) sendsTo(ctx context.Context, from dicomnet.Implementation, host string,
	destinations []Destination) (name string, ok bool) {
	places := make([]place, 0, len(destinations))
	for _, d := range destinations {
		places = append(places, placeOf(d))
	}
	l.identify(ctx, places)
	for i, p := range places {
		l.mu.Lock()
		same := l.known[p].peer == from
		l.mu.Unlock()
		if !same {
			continue
		}
		name, ok = destinations[i].Name, true
		if isAt(ctx, p.address, host) {
			l.mu.Lock()
			l.leads[p] = time.Now()
			l.mu.Unlock()
		}
	}
	return name, ok
}

// isAt tells whether a host is that of an address; the names of addresses are looked up.
func isAt(ctx context.Context, address, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	at, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	return err == nil && slices.ContainsFunc(list, func(a netip.Addr) bool {
		return a.Unmap().WithZone("") == at.Unmap().WithZone("")
	})
}

// leadBack tells whether a destination was seen to send to us, not long ago.
func (l *loops) leadBack(p place) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.leads[p]
	return ok && time.Since(at) < loopHolds
}

// isInstallation tells whether another denoised answers at a place.
func (l *loops) isInstallation(ctx context.Context, p place) bool {
	l.identify(ctx, []place{p})
	l.mu.Lock()
	defer l.mu.Unlock()
	return isInstallation(l.known[p].peer)
}

// rejectLoop answers an installation that is one of our destinations, or ourselves.
// Nothing else in this program rejects an association that offers contexts with this
// reason, so the other side knows it.
var rejectLoop = dicomnet.RejectNoReason
