package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/pipeline"
)

// sender opens associations to destinations for the pipeline.
type sender struct {
	calling string             // our AE title
	tls     func() *tls.Config // for destinations with TLS
	self    func() string      // our version name
	loops   *loops
	log     *zap.Logger
}

// Open implements pipeline.Sender. Its error is pipeline.ErrLoop if the destination is
// this daemon, or another one that sends to us.
func (s *sender) Open(ctx context.Context, d pipeline.Destination, want []pipeline.Context) (pipeline.Link, error) {
	at := place{d.AETitle, d.Address, d.TLS}
	if s.loops.leadBack(at) {
		return nil, fmt.Errorf("associate with %q at %s: %w: it sends to us", d.AETitle, d.Address, pipeline.ErrLoop)
	}
	dialer := dicomnet.Dialer{CallingAETitle: s.calling, CalledAETitle: d.AETitle, VersionName: s.self(),
		Logger: s.log.With(zap.String("destination", d.Name))}
	if d.TLS {
		dialer.TLSConfig = s.tls()
	}
	contexts := make([]dicomnet.PresentationContext, 0, len(want))
	for _, c := range want {
		contexts = append(contexts, dicomnet.PresentationContext{AbstractSyntax: c.SOPClassUID, TransferSyntaxes: []string{c.TransferSyntaxUID}})
	}
	a, err := dialer.Dial(ctx, d.Address, contexts)
	if rejected := new(dicomnet.RejectError); errors.As(err, &rejected) && *rejected == *rejectLoop &&
		s.loops.isInstallation(ctx, at) {
		return nil, fmt.Errorf("%w: %w: it is this daemon itself, or sends to it", err, pipeline.ErrLoop)
	}
	if err != nil {
		return nil, err
	}
	s.loops.learn(at, a.Peer())
	return link{a}, nil
}

// link is an open association.
type link struct{ a *dicomnet.Association }

// Accepts implements pipeline.Link.
func (l link) Accepts(c pipeline.Context) bool {
	return l.a.Accepts(c.SOPClassUID, c.TransferSyntaxUID)
}

// Store implements pipeline.Link.
func (l link) Store(ctx context.Context, o pipeline.Outgoing, r io.Reader) (uint16, error) {
	status, err := l.a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: o.SOPClassUID, SOPInstanceUID: o.SOPInstanceUID, TransferSyntaxUID: o.TransferSyntaxUID}, r)
	return uint16(status), err
}

// Close implements pipeline.Link. A broken association is closed already.
func (l link) Close(ctx context.Context) error { return l.a.Release(ctx) }
