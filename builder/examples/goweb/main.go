// Command goweb answers each request with a line about its machine.
package main

import (
	"fmt"
	"net/http"
	"runtime"
	"time"
)

func main() {
	start := time.Now()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s/%s, up for %v\n", runtime.GOOS, runtime.GOARCH, time.Since(start).Round(time.Millisecond))
	})
	panic(http.ListenAndServe(":8080", nil))
}
