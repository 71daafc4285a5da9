package check

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry.dev/gantry/internal/network/probe"
)

func TestJudge(t *testing.T) {
	a := place{Node: "a", Addr: "192.0.2.1", PodIP: "10.244.0.2", Link: "192.0.2.0/24"}
	near := place{Node: "b", Addr: "192.0.2.2", PodIP: "10.244.1.2", Service: "10.96.0.9", DNSName: "b.x.svc", Link: "192.0.2.0/24"}
	far := near
	far.Addr, far.Link = "198.51.100.2", "198.51.100.0/24"
	good := func() []probe.Answer {
		ok := probe.Answer{OK: true, Own: "10.244.0.3", Peer: "10.244.0.3"}
		return []probe.Answer{ok, ok, ok, {OK: true, MTU: 1500, Said: 1500}, ok, ok, ok}
	}
	with := func(change map[int]probe.Answer) []probe.Answer {
		out := good()
		for i, c := range change {
			out[i] = c
		}
		return out
	}
	held := []probe.Answer{{OK: true}, {OK: true}}
	timeout := probe.Answer{Error: "i/o timeout"}
	for name, tc := range map[string]struct {
		to            place
		plain, policy []probe.Answer
		want          Pair
		problems      []string // parts of what and cure
	}{
		"all well":            {near, good(), held, Pair{"a", "b", OK, OK, OK, OK, 1500}, nil},
		"asker silent":        {near, nil, nil, Pair{"a", "b", Unasked, Unasked, Unasked, Unasked, 0}, nil},
		"no way on a link":    {near, with(map[int]probe.Answer{0: timeout, 1: timeout, 2: timeout, 3: timeout, 4: timeout}), held, Pair{"a", "b", Broken, Unasked, Unasked, Unasked, 0}, []string{"do not reach pods on b: i/o timeout", "--network-mode vxlan"}},
		"no way by tunnel":    {far, with(map[int]probe.Answer{0: timeout}), held, Pair{"a", "b", Broken, Unasked, Unasked, Unasked, 1500}, []string{"do not reach", "UDP port 8472 pass from 192.0.2.1 to 198.51.100.2"}},
		"address translated":  {near, with(map[int]probe.Answer{0: {OK: true, Own: "10.244.0.3", Peer: "192.0.2.1"}}), held, Pair{"a", "b", Broken, OK, OK, OK, 1500}, []string{"seen on b as 192.0.2.1, want 10.244.0.3", "masquerade"}},
		"large packets lost":  {far, with(map[int]probe.Answer{3: {Error: "packets above 1400 bytes are lost", MTU: 1400, Said: 1450}}), held, Pair{"a", "b", OK, OK, OK, OK, 1400}, []string{"above 1400", "lower the MTU of the links that have these addresses by 50"}},
		"service":             {near, with(map[int]probe.Answer{5: timeout}), held, Pair{"a", "b", OK, Broken, OK, OK, 1500}, []string{"a service does not lead from a", "gantry-services"}},
		"names":               {near, with(map[int]probe.Answer{6: {Error: "no such host"}}), held, Pair{"a", "b", OK, OK, Broken, OK, 1500}, []string{"names are not answered to pods on a: no such host", "edge.log"}},
		"policy lets through": {near, good(), []probe.Answer{{Error: "the connection was possible"}, {OK: true}}, Pair{"a", "b", OK, OK, OK, Broken, 1500}, []string{"closes is open, from a to b", "on b:"}},
		"policy stops all":    {near, good(), []probe.Answer{{OK: true}, timeout}, Pair{"a", "b", OK, OK, OK, Broken, 1500}, []string{"leaves open is closed", "on b:"}},
	} {
		t.Run(name, func(t *testing.T) {
			pair, problems := judge(a, tc.to, tc.plain, tc.policy)
			if diff := cmp.Diff(tc.want, pair); diff != "" {
				t.Errorf("judge (-want +got):\n%s", diff)
			}
			if len(tc.problems) == 0 && len(problems) > 0 || len(tc.problems) > 0 && (len(problems) != 1 ||
				!strings.Contains(problems[0].What, tc.problems[0]) || !strings.Contains(problems[0].Cure, tc.problems[1])) {
				t.Errorf("problems %+v, want %v", problems, tc.problems)
			}
		})
	}
}
