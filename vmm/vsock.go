package vmm

import (
	"context"
	"errors"

	"github.com/smolvmm/smolvmm/devices/vsock"
	"github.com/smolvmm/smolvmm/devices/vsock/muxer"
)

// VsockConn is a connection to a port of the guest's within this process: what
// net.Conn is, but for the addresses. It takes no descriptor.
type VsockConn = muxer.Conn

// VsockListener takes the guest's connections to one port of the host's.
type VsockListener = muxer.Listener

// VsockStats are the device's counters, VsockTraffic those of one way.
type (
	VsockStats   = vsock.Stats
	VsockTraffic = vsock.Traffic
)

// MinVsockCID and MaxVsockCID bound a guest's address.
const (
	MinVsockCID = vsock.MinCID
	MaxVsockCID = vsock.MaxCID
)

// Errors of connections.
var (
	ErrVsockRefused = muxer.ErrRefused // nobody listens on the guest's port
	ErrVsockReset   = muxer.ErrReset   // the guest has ended a connection
	ErrVsockClosed  = muxer.ErrClosed  // the machine is gone, or the listener
	ErrNoVsock      = errors.New("machine: it has no vsock")
)

// addVsock attaches the device and what is behind it.
func (m *Machine) addVsock(v Vsock) error {
	mux, err := muxer.New(muxer.Config{Path: v.Path, Listener: v.Listener})
	if err != nil {
		return &ConfigError{err}
	}
	m.closers = append(m.closers, mux.Close)
	d, err := vsock.New(vsock.Config{CID: v.CID, Host: mux})
	if err != nil {
		return &ConfigError{err}
	}
	m.vsock, m.vsockHost = d, mux
	return m.addVirtio("vsock", d, d.Close)
}

// HasVsock says whether the machine has the device.
func (m *Machine) HasVsock() bool { return m.vsock != nil }

// DialVsock connects to a port of the guest's. It waits for the guest's driver, and
// then for its answer.
func (m *Machine) DialVsock(ctx context.Context, port uint32) (*VsockConn, error) {
	if m.vsockHost == nil {
		return nil, ErrNoVsock
	}
	return m.vsockHost.Dial(ctx, port)
}

// ListenVsock takes the guest's connections to a port of the host's, before any socket
// at Vsock.Path.
func (m *Machine) ListenVsock(port uint32) (*VsockListener, error) {
	if m.vsockHost == nil {
		return nil, ErrNoVsock
	}
	return m.vsockHost.Listen(port)
}

// VsockStats gives the device's counters; all zero without one.
func (m *Machine) VsockStats() VsockStats {
	if m.vsock == nil {
		return VsockStats{}
	}
	return m.vsock.Stats()
}
