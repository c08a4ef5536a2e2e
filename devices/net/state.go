package net

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// macText is an address as it stands in a state: 02:00:5e:10:00:01.
type macText [6]byte

func (m macText) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MarshalText writes the address.
func (m macText) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText wrote, and nothing else.
func (m *macText) UnmarshalText(b []byte) error {
	// Digits without their colons: hex.Decode writes as many bytes as it is
	// given digits for, so their number comes first.
	digits := bytes.ReplaceAll(b[:min(len(b), 17)], []byte(":"), nil)
	if len(digits) != 12 {
		return fmt.Errorf("MAC address %.20q", b)
	}
	if _, err := hex.Decode(m[:], digits); err != nil || m.String() != string(b) {
		return fmt.Errorf("MAC address %.20q", b)
	}
	return nil
}

// state is what a device restored elsewhere has to know, and what of its
// configuration the guest has seen and must find again.
type state struct {
	Version    int       `json:"version"`
	MTU        int       `json:"mtu"` // bytes
	QueuePairs int       `json:"queue_pairs"`
	Permanent  macText   `json:"permanent_mac"`
	MAC        macText   `json:"mac"`
	Link       bool      `json:"link"`
	LinkNews   bool      `json:"link_changed"` // the driver has to hear of it
	Active     int       `json:"active_pairs"`
	Promisc    bool      `json:"promiscuous"`
	AllMulti   bool      `json:"all_multicast"`
	Unicast    listState `json:"unicast"`
	Multicast  listState `json:"multicast"`
}

type listState struct {
	All   bool      `json:"all"`
	Addrs []macText `json:"addresses"`
}

const stateVersion = 1

// maxState bounds a state in bytes: two full tables are 2,700.
const maxState = 16 << 10

func (t *table) state() listState {
	s := listState{All: t.all, Addrs: []macText{}}
	for _, a := range t.addrs {
		s.Addrs = append(s.Addrs, a.bytes())
	}
	return s
}

// State gives the device's own state. The queues' indices are the transport's to
// save, connections the network's.
func (d *Device) State() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.paused {
		return nil, errors.New("virtio-net: state of a device that is not quiesced")
	}
	return json.Marshal(state{
		Version: stateVersion, MTU: d.mtu, QueuePairs: d.pairs,
		Permanent: d.permanent.bytes(), MAC: macAddr(d.mac.Load()).bytes(),
		Link: d.link.Load(), LinkNews: d.linkNews, Active: int(d.active.Load()),
		Promisc: d.filter.promisc, AllMulti: d.filter.allMulti,
		Unicast: d.filter.uni.state(), Multicast: d.filter.multi.state(),
	})
}

// Restore puts a state into a fresh device over a network of the same MTU.
func (d *Device) Restore(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.act != nil {
		return errors.New("virtio-net: restore of a device in use")
	}
	if len(b) > maxState {
		return fmt.Errorf("virtio-net state: %d bytes, at most %d", len(b), maxState)
	}
	var s state
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("virtio-net state: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("virtio-net state: more behind its end")
	}
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("virtio-net state: version %d, this program knows %d", s.Version, stateVersion)
	case s.MTU != d.mtu:
		return fmt.Errorf("virtio-net state: MTU %d, this network has %d", s.MTU, d.mtu)
	case s.QueuePairs != d.pairs:
		return fmt.Errorf("virtio-net state: %d queue pairs, this device has %d", s.QueuePairs, d.pairs)
	case s.Active < 1 || s.Active > d.pairs:
		return fmt.Errorf("virtio-net state: %d queue pairs in use of %d", s.Active, d.pairs)
	case !macOf(s.Permanent[:]).unicast():
		return fmt.Errorf("virtio-net state: permanent MAC address %s", s.Permanent)
	case !macOf(s.MAC[:]).unicast():
		return fmt.Errorf("virtio-net state: MAC address %s", s.MAC)
	case len(s.Unicast.Addrs) > maxAddrs || len(s.Multicast.Addrs) > maxAddrs:
		return fmt.Errorf("virtio-net state: a table of more than %d addresses", maxAddrs)
	case s.Unicast.All && len(s.Unicast.Addrs) > 0 || s.Multicast.All && len(s.Multicast.Addrs) > 0:
		return errors.New("virtio-net state: a table of all addresses, and some")
	}
	d.permanent = macOf(s.Permanent[:])
	d.mac.Store(uint64(macOf(s.MAC[:])))
	d.link.Store(s.Link)
	d.linkNews = s.LinkNews
	d.active.Store(uint32(s.Active))
	d.receive.Lock()
	defer d.receive.Unlock()
	d.filter.promisc, d.filter.allMulti = s.Promisc, s.AllMulti
	d.filter.uni.restore(s.Unicast)
	d.filter.multi.restore(s.Multicast)
	d.paused = true
	return nil
}

func (t *table) restore(s listState) {
	t.all, t.addrs = s.All, t.addrs[:0]
	for _, a := range s.Addrs {
		t.addrs = append(t.addrs, macOf(a[:]))
	}
}
