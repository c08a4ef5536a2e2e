package netstack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// A Go handler serves HTTP into a guest: no socket of the host's is opened. The
// guest here is a test's; a machine's network is used the same way.
func ExampleStack_Listen() {
	network, err := netstack.New(netstack.Config{HostOnly: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()
	l, err := network.Listen("tcp", "gateway:80")
	if err != nil {
		fmt.Println(err)
		return
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s", r.URL.Path[1:])
	}))

	guest, err := netstacktest.New(network, netstacktest.Options{Address: netip.MustParsePrefix("10.0.2.15/24")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer guest.Close()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return guest.DialTCP(ctx, netip.MustParseAddrPort(address))
		},
	}}
	r, err := client.Get("http://10.0.2.2:80/guest")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	fmt.Println(string(b))
	// Output: hello, guest
}
