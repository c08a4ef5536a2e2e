package muxer

import (
	"bytes"
	"errors"
	"strconv"
)

// maxLine bounds the first line of a client in bytes, its end included: as
// Firecracker's does, with some room for spaces.
const maxLine = 32

var errLine = errors.New("not CONNECT and a port")

// parseConnect reads a client's first line, without its end: CONNECT in any case,
// and a port in decimal.
func parseConnect(line []byte) (port uint32, err error) {
	var words [3][]byte
	n := 0
	for w := range bytes.FieldsSeq(line) {
		if n == len(words) {
			return 0, errLine
		}
		words[n] = w
		n++
	}
	if n != 2 || !bytes.EqualFold(words[0], []byte("connect")) {
		return 0, errLine
	}
	p, err := strconv.ParseUint(string(words[1]), 10, 32)
	if err != nil {
		return 0, errLine
	}
	return uint32(p), nil
}
