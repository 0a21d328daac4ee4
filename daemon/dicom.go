package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/pipeline"
)

// Associate decides who may send: the called AE title must be one of ours, and
// the calling one and its address among the peers, if there are any.
//
// An installation that is one of our destinations, or ourselves, is refused: what it
// brings came from us, or would go back to it.
func (d *Daemon) Associate(ctx context.Context, req *dicomnet.AssociateRequest) (dicomnet.Session, error) {
	cfg := d.cfg.Load()
	host := hostOf(req.RemoteAddr)
	log := d.log.With(zap.String("calling", req.CallingAETitle), zap.String("called", req.CalledAETitle), zap.String("host", host))
	if _, ok := cfg.DICOM.AETitles[req.CalledAETitle]; !ok {
		log.Warn("association refused: the called AE title is not one of dicom.ae_titles")
		return nil, dicomnet.RejectCalledAETitle
	}
	if why := refusal(cfg.DICOM.Peers, req.CallingAETitle, host); why != "" {
		log.Warn("association refused: " + why)
		return nil, dicomnet.RejectCallingAETitle
	}
	peer := dicomnet.Implementation{ClassUID: req.ImplementationClassUID, VersionName: req.ImplementationVersionName}
	if isInstallation(peer) {
		if peer.VersionName == d.self {
			log.Error("ALARM: association refused: it comes from this daemon itself, which has its own address as a " +
				"destination")
			return nil, rejectLoop
		}
		if name, ok := d.loops.sendsTo(ctx, peer, host, cfg.Destinations); ok {
			log.Error("ALARM: association refused: the peer is a destination of this daemon, images would go round",
				zap.String("destination", name))
			return nil, rejectLoop
		}
	}
	s := &session{d: d, id: d.associations.Add(1), calling: req.CallingAETitle, called: req.CalledAETitle, host: host, log: log}
	d.pipe.AssociationOpened(s.id, s.calling, s.host)
	return s, nil
}

// refusal says why a peer may not send, or nothing.
func refusal(peers []Peer, calling, host string) string {
	if len(peers) == 0 {
		return ""
	}
	why := "the calling AE title is not one of dicom.peers"
	addr, err := netip.ParseAddr(host)
	addr = addr.Unmap().WithZone("")
	for _, p := range peers {
		if p.AETitle != calling {
			continue
		}
		if len(p.Hosts) == 0 {
			return ""
		}
		why = "the address is not one of its hosts in dicom.peers"
		for _, prefix := range p.Hosts {
			if err == nil && prefix.Contains(addr) {
				return ""
			}
		}
	}
	return why
}

// allowAddr closes connections of hosts that no peer may have, before a byte of
// theirs is read.
func (d *Daemon) allowAddr(a net.Addr) bool {
	peers := d.cfg.Load().DICOM.Peers
	addr, err := netip.ParseAddr(hostOf(a))
	addr = addr.Unmap().WithZone("")
	for _, p := range peers {
		if len(p.Hosts) == 0 {
			return true
		}
		for _, prefix := range p.Hosts {
			if err == nil && prefix.Contains(addr) {
				return true
			}
		}
	}
	return len(peers) == 0
}

// hostOf is an address without its port.
func hostOf(a net.Addr) string {
	if host, _, err := net.SplitHostPort(a.String()); err == nil {
		return host
	}
	return a.String()
}

// session hands the objects of one association to the pipeline.
type session struct {
	d                     *Daemon
	id                    uint64
	calling, called, host string
	log                   *zap.Logger
	stored, failed        int
}

// Store is success only when the pipeline has promised durability.
func (s *session) Store(ctx context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	err := s.d.pipe.Receive(ctx, pipeline.Incoming{
		SOPClassUID: req.SOPClassUID, SOPInstanceUID: req.SOPInstanceUID, TransferSyntaxUID: req.TransferSyntaxUID,
		CallingAETitle: s.calling, CalledAETitle: s.called, RemoteHost: s.host, AssociationID: s.id,
	}, r)
	status := storeStatus(err)
	if err == nil {
		s.stored++
		return status
	}
	s.failed++
	s.log.Error("image not taken", zap.String("instance", req.SOPInstanceUID), zap.Stringer("status", status), zap.Error(err))
	return status
}

// whoAnswers asks a destination for its name, not as an installation: this
// question has to be answered by one that refuses our images.
func (d *Daemon) whoAnswers(ctx context.Context, p place) (dicomnet.Implementation, error) {
	dialer := dicomnet.Dialer{CallingAETitle: d.cfg.Load().ownAETitle(), CalledAETitle: p.aet}
	if p.tls {
		dialer.TLSConfig = d.tls.Load().client
	}
	peer, _, err := echo(ctx, &dialer, p.address)
	return peer, err
}

// storeStatus is what a scanner is told (PS3.4 B.2.3). Scanners keep what was
// refused with 0xA700 and mostly try again later. That is the answer to whatever is
// not the object's fault: a full disk, one that fails or has become read-only, a
// journal that cannot be written, no descriptors. 0x0110, a failure while the object was
// processed, is what package dicomnet says after a panic.
func storeStatus(err error) dicomnet.Status {
	var mismatch *pipeline.MismatchError
	switch {
	case err == nil:
		return dicomnet.StatusSuccess
	case errors.As(err, &mismatch):
		return dicomnet.StatusDataSetMismatch
	case errors.Is(err, pipeline.ErrEmpty), errors.Is(err, pipeline.ErrUID):
		return dicomnet.StatusCannotUnderstand
	}
	return dicomnet.StatusOutOfResources
}

// Close ends the association for the pipeline; dicomnet logs the rest.
func (s *session) Close(cause error) {
	s.d.pipe.AssociationClosed(s.id)
	if s.failed > 0 {
		s.log.Warn("association brought images that were not taken", zap.Int("stored", s.stored), zap.Int("failed", s.failed), zap.Error(cause))
	}
}
