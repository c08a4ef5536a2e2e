package machines

import (
	"fmt"
	"math/rand/v2"
)

// RandomName makes up a name that one can say. try counts up from 0: after some
// tries it gets a number, so that there is always one that is free.
func RandomName(try int) string {
	first := [...]string{"amber", "bold", "brave", "brisk", "calm", "clear", "cosy", "crisp", "dapper", "deft", "eager", "fair", "fleet", "fond", "frank", "glad",
		"golden", "happy", "hardy", "jolly", "keen", "kind", "light", "lively", "lucky", "mellow", "merry", "mild", "neat", "nimble", "plain", "proud",
		"quick", "quiet", "rapid", "ready", "silver", "smart", "snug", "sound", "spry", "steady", "still", "sunny", "swift", "tidy", "vivid", "warm"}
	second := [...]string{"badger", "beaver", "bison", "crane", "curlew", "deer", "dove", "eagle", "egret", "falcon", "ferret", "finch", "fox", "gecko", "hare", "heron",
		"ibex", "jay", "kestrel", "koala", "lark", "lemur", "linnet", "lynx", "marten", "merlin", "mole", "moose", "newt", "orca", "oriole", "otter",
		"owl", "panda", "plover", "puffin", "quail", "raven", "robin", "seal", "shrew", "siskin", "stoat", "stork", "swan", "tapir", "thrush", "wren"}
	name := first[rand.IntN(len(first))] + "-" + second[rand.IntN(len(second))]
	if try > 4 {
		name += fmt.Sprintf("-%d", rand.IntN(9000)+1000)
	}
	return name
}
