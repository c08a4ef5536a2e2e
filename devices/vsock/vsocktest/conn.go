package vsocktest

// Window is the buffer in bytes that a Conn has in the guest.
const Window = 256 << 10

// Conn is a guest's end of a connection, with the counters of its credit. Its
// methods wait for packets of this connection alone: others' fail the test.
type Conn struct {
	G            *Guest
	Port, Host   uint32
	Sent, Got    uint32 // bytes, modulo 2^32
	told         uint32 // Got as the host last heard it
	Alloc, Fwd   uint32 // the host's
	Peer, Closed uint32 // SHUTDOWN flags of the host's, ours
	Reset        bool
	Opened       bool
}

// Dial connects from a port of the guest's to one of the host's. Reset is set if
// that was refused.
func (g *Guest) Dial(port, host uint32) *Conn {
	g.tb.Helper()
	c := &Conn{G: g, Port: port, Host: host}
	c.send(Packet{Op: Request})
	for !c.Opened && !c.Reset {
		c.hear(g.Recv())
	}
	return c
}

// Accept waits for a call of the host's to port, and takes it.
func (g *Guest) Accept(port uint32) *Conn {
	g.tb.Helper()
	p := g.Recv()
	if p.Op != Request || p.DstPort != port {
		g.tb.Fatalf("%v came, want a call to %d", p, port)
	}
	c := &Conn{G: g, Port: port, Host: p.SrcPort, Alloc: p.BufAlloc, Fwd: p.FwdCnt, Opened: true}
	c.send(Packet{Op: Response})
	return c
}

func (c *Conn) header(p *Packet) {
	p.SrcPort, p.DstPort, p.BufAlloc, p.FwdCnt = c.Port, c.Host, Window, c.Got
	c.told = c.Got
}

func (c *Conn) send(p Packet) {
	c.G.tb.Helper()
	c.header(&p)
	c.G.Send(p)
}

// hear takes in a packet, and gives the data in it.
func (c *Conn) hear(p Packet) []byte {
	c.G.tb.Helper()
	if p.DstPort != c.Port || p.SrcPort != c.Host {
		c.G.tb.Fatalf("%v came on the connection %d–%d", p, c.Port, c.Host)
	}
	c.Alloc, c.Fwd = p.BufAlloc, p.FwdCnt
	switch p.Op {
	case Response:
		c.Opened = true
	case RST:
		c.Reset = true
	case Shutdown:
		c.Peer |= p.Flags
	case RW:
		c.Got += p.Len
		if c.Got-c.told > Window {
			c.G.tb.Fatalf("%v: %d bytes beyond the guest's buffer", p, c.Got-c.told-Window)
		}
		return p.Data
	case CreditRequest:
		c.send(Packet{Op: CreditUpdate})
	case CreditUpdate:
	default:
		c.G.tb.Fatalf("%v came", p)
	}
	return nil
}

// Room is how many bytes the host takes.
func (c *Conn) Room() uint32 { return c.Alloc - (c.Sent - c.Fwd) }

// Write sends p, waiting for credit, and says how much went before the end.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.G.tb.Helper()
	for len(p) > 0 && !c.Reset && c.Peer&ShutReceive == 0 {
		k := min(len(p), int(c.Room()), int(c.G.tx.size)-HeaderLen)
		if k == 0 {
			c.hear(c.G.Recv())
			continue
		}
		h := Packet{SrcCID: c.G.CID, DstCID: HostCID, Type: Stream, Op: RW, Len: uint32(k)}
		c.header(&h)
		c.G.SendRaw(h.Header(), p[:k])
		c.Sent += uint32(k)
		p, n = p[k:], n+k
	}
	return n, nil
}

// Step waits for one packet, whatever it is, and gives the bytes in it.
func (c *Conn) Step() []byte {
	c.G.tb.Helper()
	return c.hear(c.G.Recv())
}

// Next gives the next bytes of the host's, nil at the end. They hold until the
// next packet.
func (c *Conn) Next() []byte {
	c.G.tb.Helper()
	for !c.Reset && c.Peer&ShutSend == 0 {
		if c.Got-c.told >= Window/2 {
			c.send(Packet{Op: CreditUpdate})
		}
		if b := c.hear(c.G.Recv()); len(b) > 0 {
			return b
		}
	}
	return nil
}

// Read reads n bytes.
func (c *Conn) Read(n int) (all []byte) {
	c.G.tb.Helper()
	for len(all) < n {
		b := c.Next()
		if b == nil {
			c.G.tb.Fatalf("%d bytes and the end, want %d", len(all), n)
		}
		all = append(all, b...)
	}
	return all
}

// Shut sends SHUTDOWN.
func (c *Conn) Shut(flags uint32) {
	c.G.tb.Helper()
	c.Closed |= flags
	c.send(Packet{Op: Shutdown, Flags: flags})
}

// WaitReset waits for RST.
func (c *Conn) WaitReset() {
	c.G.tb.Helper()
	for !c.Reset {
		c.hear(c.G.Recv())
	}
}

// WaitShut waits for SHUTDOWN with these flags in all.
func (c *Conn) WaitShut(flags uint32) {
	c.G.tb.Helper()
	for !c.Reset && c.Peer&flags != flags {
		c.hear(c.G.Recv())
	}
	if c.Peer&flags != flags {
		c.G.tb.Fatalf("reset, want SHUTDOWN %d", flags)
	}
}

// Send sends a packet of this connection with its credit.
func (c *Conn) Send(p Packet) {
	c.G.tb.Helper()
	c.send(p)
}
