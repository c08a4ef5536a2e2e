package kernels

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"strings"
)

// maxSums bounds a file of digests, in bytes; NetBSD's have a few KiB.
const maxSums = 1 << 20

// parseSums reads digests in the form of cksum(1), one a line:
// `SHA512 (name) = 128 hex digits`. Other lines are passed over; of two for
// the same name the first counts.
func parseSums(b []byte) map[string]string {
	sums := map[string]string{}
	for line := range bytes.Lines(b) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "SHA512 (")
		if !ok {
			continue
		}
		name, digest, ok := strings.Cut(rest, ") = ")
		if !ok || !isDigest(digest) {
			continue
		}
		if _, twice := sums[name]; !twice {
			sums[name] = strings.ToLower(digest)
		}
	}
	return sums
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 64
}

func readSums(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSums))
	if err != nil {
		return nil, err
	}
	return parseSums(b), nil
}
