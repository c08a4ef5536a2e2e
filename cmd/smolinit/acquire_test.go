package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeLink is a wire with someone behind it, in synctest's time.
type fakeLink struct {
	t       *testing.T
	react   func(l *fakeLink, kind string)
	come    chan []byte
	sent    []string
	sendErr error
	readErr error
}

// kindOf names a frame that a client sends.
func kindOf(t *testing.T, f []byte) string {
	if binary.BigEndian.Uint16(f[12:]) == typeIPv6 {
		return "solicitation"
	}
	switch k := f[14+20+8+bootpFixed+4+2]; k {
	case dhcpDiscover:
		return "discover"
	case dhcpRequest:
		return "request"
	default:
		t.Fatalf("message of type %d", k)
		return ""
	}
}

func (l *fakeLink) send(f []byte) error {
	if l.sendErr != nil {
		return l.sendErr
	}
	kind := kindOf(l.t, f)
	l.sent = append(l.sent, kind)
	if l.react != nil {
		l.react(l, kind)
	}
	return nil
}

func (l *fakeLink) receive(deadline time.Time) ([][]byte, error) {
	if l.readErr != nil {
		return nil, l.readErr
	}
	select {
	case f := <-l.come:
		return [][]byte{f}, nil
	case <-time.After(time.Until(deadline)):
		return nil, nil
	}
}

func TestAcquire(t *testing.T) {
	offer := func(l *fakeLink) { l.come <- answerFrame(answer(dhcpOffer, nil)) }
	serve := func(l *fakeLink, kind string) {
		switch kind {
		case "discover":
			offer(l)
		case "request":
			l.come <- answerFrame(answer(dhcpAck, nil))
		case "solicitation":
			l.come <- advertFrame(advertOptions())
		}
	}
	requests := 0
	for _, c := range []struct {
		name    string
		slaac   bool
		react   func(*fakeLink, string)
		sendErr error
		readErr error
		sent    []string
		leased  bool
		says    string // of the error
		routed  bool
		took    time.Duration
	}{
		{name: "all answer", slaac: true, react: serve, sent: []string{"discover", "solicitation", "request"}, leased: true, routed: true},
		{name: "nobody answers", slaac: true, took: raListen, says: "no DHCP server answered within 3s",
			sent: []string{"discover", "solicitation", "discover", "solicitation", "discover", "discover", "solicitation", "solicitation", "solicitation"}},
		{name: "no SLAAC", react: serve, sent: []string{"discover", "request"}, leased: true},
		{name: "the first message is lost", sent: []string{"discover", "discover", "request"}, leased: true, took: firstAsk,
			react: func(l *fakeLink, kind string) {
				if kind != "discover" || len(l.sent) > 1 {
					serve(l, kind)
				}
			}},
		{name: "a server that offers and no more", says: "no DHCP server", took: netWait,
			sent: []string{"discover", "request", "request", "discover", "request"},
			react: func(l *fakeLink, kind string) {
				if kind == "discover" {
					offer(l)
				}
			}},
		{name: "a refusal, then not", leased: true, took: 2 * firstAsk, sent: []string{"discover", "request", "discover", "request"},
			react: func(l *fakeLink, kind string) {
				if kind == "request" && requests == 0 {
					requests++
					l.come <- answerFrame(answer(dhcpNak, nil))
					return
				}
				serve(l, kind)
			}},
		{name: "always refused", says: "no DHCP server", took: netWait,
			react: func(l *fakeLink, kind string) {
				if kind == "request" {
					l.come <- answerFrame(answer(dhcpNak, nil))
					return
				}
				serve(l, kind)
			}},
		{name: "answers that are not for us", says: "no DHCP server", took: netWait,
			react: func(l *fakeLink, kind string) {
				l.come <- answerFrame(answer(dhcpAck, nil)) // never asked for
				l.come <- answerFrame(answer(dhcpOffer, func(p []byte) { p[4]++ }))
				l.come <- []byte{1, 2, 3}
			}},
		{name: "an answer without a mask", says: "no usable netmask", took: netWait,
			react: func(l *fakeLink, kind string) {
				l.come <- answerFrame(answer(dhcpOffer, func(p []byte) { p[len(p)-5] = 0; p[len(p)-2] = 1 }))
			}},
		{name: "a wire that fails", slaac: true, sendErr: errors.New("network is down"), says: "network is down"},
		{name: "a wire that fails later", slaac: true, readErr: errors.New("gone"), says: "gone", sent: []string{"discover", "solicitation"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &fakeLink{t: t, react: c.react, come: make(chan []byte, 16), sendErr: c.sendErr, readErr: c.readErr}
				var leases []string
				var adverts []advert
				begun := time.Now()
				(&client{link: l, mac: testMAC, xid: testXid, dhcp: true, slaac: c.slaac,
					leased: func(s setup, err error) {
						if err == nil && s.Address != netip.MustParsePrefix("10.0.2.15/24") {
							t.Errorf("%+v", s)
						}
						leases = append(leases, fmt.Sprint(err))
					},
					routed: func(a advert) { adverts = append(adverts, a) },
				}).run()
				if len(leases) != 1 || (leases[0] == "<nil>") != c.leased || !strings.Contains(leases[0], c.says) {
					t.Errorf("leased %q, want %v %q", leases, c.leased, c.says)
				}
				if (len(adverts) == 1) != c.routed || len(adverts) > 1 {
					t.Errorf("routed %v", adverts)
				}
				if c.sent != nil && !reflect.DeepEqual(l.sent, c.sent) {
					t.Errorf("sent %q\nwant %q", l.sent, c.sent)
				}
				if len(l.sent) > 20 {
					t.Errorf("sent %d messages", len(l.sent))
				}
				if took := time.Since(begun); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
			})
		})
	}
}

// What comes all the time does not keep the boot waiting.
func TestAcquireUnderFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &fakeLink{t: t, come: make(chan []byte)}
		end := make(chan struct{})
		go func() {
			for f := answerFrame(answer(dhcpNak, nil)); ; time.Sleep(time.Millisecond) {
				select {
				case l.come <- f:
				case <-end:
					return
				}
			}
		}()
		begun, failed := time.Now(), false
		(&client{link: l, mac: testMAC, xid: testXid, dhcp: true, leased: func(_ setup, err error) { failed = err != nil }}).run()
		close(end)
		if took := time.Since(begun); !failed || took > netWait+10*time.Millisecond || len(l.sent) > 10 {
			t.Errorf("%v, %v, %d messages", failed, took, len(l.sent))
		}
	})
}
