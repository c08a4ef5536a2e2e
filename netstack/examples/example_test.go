package examples

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

// A Go handler serves HTTP into a guest. No socket of the host's is opened, and
// the guest reaches nothing else.
func Example() {
	network, err := netstack.New(netstack.Config{HostOnly: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()

	l, err := network.Listen("tcp", ":80")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s", r.URL.Path[1:])
	})}
	go server.Serve(l)
	defer server.Close()

	// In a machine the network is the Backend of its interface: vmm.Net{Backend: network}.
	// Here another stack is the guest.
	guest, err := netstacktest.New(network, netstacktest.Options{Address: netip.MustParsePrefix("10.0.2.15/24")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer guest.Close()
	inGuest := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return guest.DialTCP(ctx, netip.MustParseAddrPort(address))
		},
	}}
	defer inGuest.CloseIdleConnections()
	r, err := inGuest.Get("http://10.0.2.2/guest")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	fmt.Println(string(b))
	// Output: hello, guest
}

// A Go program asks a server in the guest, without a published port.
func Example_client() {
	network, err := netstack.New(netstack.Config{HostOnly: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close()
	guest, err := netstacktest.New(network, netstacktest.Options{Address: netip.MustParsePrefix("10.0.2.15/24")})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer guest.Close()
	l, err := guest.Listen(netip.MustParseAddrPort("10.0.2.15:80"))
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the guest's answer")
	})}
	go server.Serve(l)
	defer server.Close()

	client := &http.Client{Transport: &http.Transport{DialContext: network.DialContext}}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://guest/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	fmt.Println(string(b))
	// Output: the guest's answer
}
