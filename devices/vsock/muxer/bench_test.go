package muxer_test

import (
	"io"
	"testing"

	"github.com/smolvmm/smolvmm/devices/vsock/muxer"
	"github.com/smolvmm/smolvmm/devices/vsock/vsocktest"
)

// What bench/vsock runs: a stream each way and a round trip of a byte, over a Unix
// socket and in the process, between the mock guest and the host. Buffers are those of
// Linux's driver, 4 KiB to receive and up to 64 KiB to send, and of larger ones.

func benchRig(b *testing.B, size uint32) *rig {
	return newRig(b, vsocktest.Options{RXSize: size})
}

// ends gives both ends of a connection.
func ends(b *testing.B, r *rig, socket bool) (io.ReadWriteCloser, *vsocktest.Conn) {
	if socket {
		return r.call(1)
	}
	ch := make(chan *muxer.Conn, 1)
	go func() {
		c, err := r.m.Dial(b.Context(), 1)
		if err != nil {
			b.Error(err)
		}
		ch <- c
	}()
	g := r.Accept(1)
	return <-ch, g
}

func eachEnd(b *testing.B, f func(b *testing.B, socket bool)) {
	b.Run("socket", func(b *testing.B) { f(b, true) })
	b.Run("process", func(b *testing.B) { f(b, false) })
}

const benchChunk = 64 << 10

func BenchmarkToHost(b *testing.B) {
	eachEnd(b, func(b *testing.B, socket bool) {
		r := benchRig(b, 4096)
		c, g := ends(b, r, socket)
		done := make(chan int64)
		go func() {
			n, _ := io.CopyN(io.Discard, onlyReader{c}, int64(b.N)*benchChunk)
			done <- n
		}()
		p := make([]byte, benchChunk)
		b.SetBytes(benchChunk)
		b.ResetTimer()
		for range b.N {
			g.Write(p)
		}
		<-done
	})
}

func BenchmarkToGuest(b *testing.B) {
	for _, size := range []uint32{4096, 64<<10 + 44} {
		b.Run(map[bool]string{true: "4KiB", false: "64KiB"}[size == 4096], func(b *testing.B) {
			eachEnd(b, func(b *testing.B, socket bool) {
				r := benchRig(b, size)
				c, g := ends(b, r, socket)
				b.SetBytes(benchChunk)
				b.ResetTimer()
				go func() {
					p := make([]byte, benchChunk)
					for range b.N {
						c.Write(p)
					}
				}()
				for n := 0; n < b.N*benchChunk; {
					n += len(g.Next())
				}
			})
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	eachEnd(b, func(b *testing.B, socket bool) {
		r := benchRig(b, 4096)
		c, g := ends(b, r, socket)
		go func() {
			p := make([]byte, 1)
			for {
				if _, err := c.Read(p); err != nil {
					return
				}
				c.Write(p)
			}
		}()
		p := []byte{1}
		b.ResetTimer()
		for range b.N {
			g.Write(p)
			if len(g.Next()) != 1 {
				b.Fatal("no answer")
			}
		}
		b.StopTimer()
		c.Close()
	})
}

// onlyReader keeps io.Copy from ways around Read.
type onlyReader struct{ io.Reader }
