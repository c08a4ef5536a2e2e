//go:build linux

package main

import (
	"fmt"
	"io"
	"net"

	"github.com/smolvmm/smolvmm/bench/linux/streams"
	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

// serveVsock gives each connection to a port of this system's to serve.
func serveVsock(port uint32, serve func(net.Conn)) error {
	l, err := agentd.ListenVsock(port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				fmt.Println("guest: FAILED: accept:", err)
				return
			}
			go serve(c)
		}
	}()
	return nil
}

// serveStreams is what bench/vsock measures, until the machine is ended from outside.
func serveStreams() error {
	for port, run := range map[uint32]func(io.ReadWriter) error{
		streams.EchoPort: streams.Echo, streams.SourcePort: streams.Source, streams.SinkPort: streams.Sink,
	} {
		if err := serveVsock(port, func(c net.Conn) {
			defer c.Close()
			if err := run(c); err != nil {
				fmt.Println("guest: FAILED:", err)
			}
		}); err != nil {
			return err
		}
	}
	ok("ready")
	select {}
}
