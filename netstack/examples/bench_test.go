package examples

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/netstacktest"
	"github.com/smolvmm/smolvmm/netstack/pcap"
	"github.com/smolvmm/smolvmm/netstack/publish"
)

// BenchmarkPublished is the rate of one connection from a client on the host
// through a published port into the guest, and back, with frames captured and
// not. The client, both stacks and the relay share the CPUs.
func BenchmarkPublished(b *testing.B) {
	for _, s := range setups {
		for _, captured := range []bool{false, true} {
			name := s.name
			if captured {
				name += ", captured"
			}
			b.Run(name+"/up", func(b *testing.B) { benchmark(b, s.config, s.guest, captured, true) })
			b.Run(name+"/down", func(b *testing.B) { benchmark(b, s.config, s.guest, captured, false) })
		}
	}
}

func benchmark(b *testing.B, c netstack.Config, o netstacktest.Options, captured, up bool) {
	network, err := netstack.New(c)
	if err != nil {
		b.Fatal(err)
	}
	defer network.Close()
	var backend netstacktest.Network = network
	if captured {
		tap, err := pcap.New(network, io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			_ = tap.Close()
			st := tap.Stats()
			b.ReportMetric(100*float64(st.Dropped)/float64(st.Dropped+st.Captured), "%dropped")
		}()
		backend = tap
	}
	o.Address = netip.PrefixFrom(guestAddr, 24)
	guest, err := netstacktest.New(backend, o)
	if err != nil {
		b.Fatal(err)
	}
	defer guest.Close()
	l, err := guest.Listen(netip.AddrPortFrom(guestAddr, 80))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	buf := make([]byte, 1<<17)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if up {
			_, _ = io.Copy(io.Discard, c)
			return
		}
		out := make([]byte, len(buf))
		for {
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}()
	set, err := publish.Open([]publish.Spec{{Network: "tcp", GuestPort: 80}}, publish.Config{})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- set.Serve(context.Background(), network) }()
	defer func() {
		_ = set.Close()
		<-served
	}()
	client, err := net.Dial("tcp", set.Addrs()[0].Addrs[0].String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if up {
			_, err = client.Write(buf)
		} else {
			_, err = io.ReadFull(client, buf)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if up {
		_ = client.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, client) // its end says that all has arrived
	}
}
