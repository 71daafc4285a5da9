package volume

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"gantry.dev/gantry/internal/volume/local"
)

func newClaim(change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "c1", Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("fast"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(claim)
	}
	return claim
}

func newPV(name, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: "fast",
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "disk.example"}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, f := range change {
		f(pv)
	}
	return pv
}

func newClass(name string, mode storagev1.VolumeBindingMode, provisioner string) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
}

func refersTo(uid types.UID) func(*corev1.PersistentVolume) {
	return func(pv *corev1.PersistentVolume) {
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: "data", UID: uid}
	}
}

func named(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func annotated(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations[name] = "n1" }
}

func TestPlanClaim(t *testing.T) {
	now := newClass("fast", storagev1.VolumeBindingImmediate, "disk.example")
	later := newClass("fast", storagev1.VolumeBindingWaitForFirstConsumer, "disk.example")
	completed := annotated(storagehelpers.AnnBindCompleted)
	for name, tc := range map[string]struct {
		facts     claimFacts
		bind      string
		phase     corev1.PersistentVolumeClaimPhase
		event     string // reason and note, a prefix
		provision bool
		setClass  string
	}{
		"the smallest that is large enough": {
			facts: claimFacts{claim: newClaim(), class: now, others: []*corev1.PersistentVolume{newPV("huge", "50Gi"), newPV("fits", "5Gi"), newPV("large", "9Gi"), newPV("tiny", "1Gi")}},
			bind:  "fits",
		},
		"fewest modes come first": {
			facts: claimFacts{claim: newClaim(), class: now, others: []*corev1.PersistentVolume{newPV("shared", "5Gi", func(pv *corev1.PersistentVolume) {
				pv.Spec.AccessModes = append(pv.Spec.AccessModes, corev1.ReadWriteMany)
			}), newPV("own", "9Gi")}},
			bind: "own",
		},
		"one made for the claim comes before all": {
			facts: claimFacts{claim: newClaim(), class: later, others: []*corev1.PersistentVolume{newPV("fits", "5Gi"), newPV("made", "9Gi", refersTo(""))}},
			bind:  "made",
		},
		"a selector": {
			facts: claimFacts{claim: newClaim(func(c *corev1.PersistentVolumeClaim) {
				c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "ssd"}}
			}), class: now, others: []*corev1.PersistentVolume{newPV("plain", "5Gi"), newPV("ssd", "9Gi", func(pv *corev1.PersistentVolume) { pv.Labels = map[string]string{"disk": "ssd"} })}},
			bind: "ssd",
		},
		"nothing fits, so it is provisioned": {
			facts: claimFacts{claim: newClaim(), class: now, others: []*corev1.PersistentVolume{
				newPV("mode", "9Gi", func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }),
				newPV("class", "9Gi", func(pv *corev1.PersistentVolume) { pv.Spec.StorageClassName = "slow" }),
				newPV("access", "9Gi", func(pv *corev1.PersistentVolume) {
					pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
				}),
				newPV("released", "9Gi", func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }),
				newPV("leaving", "9Gi", func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }),
				newPV("another's", "9Gi", refersTo("c2")),
			}},
			phase: corev1.ClaimPending, provision: true,
		},
		"waits for a pod": {
			facts: claimFacts{claim: newClaim(), class: later, others: []*corev1.PersistentVolume{newPV("fits", "5Gi")}},
			phase: corev1.ClaimPending, event: "WaitForFirstConsumer waiting for first consumer to be created before binding",
		},
		"waits for a pod's node": {
			facts: claimFacts{claim: newClaim(), class: later, waiting: []string{"web-0"}},
			phase: corev1.ClaimPending, event: "WaitForPodScheduled waiting for pod web-0 to be scheduled",
		},
		"the scheduler has chosen": {
			facts: claimFacts{claim: newClaim(annotated(storagehelpers.AnnSelectedNode)), class: later},
			phase: corev1.ClaimPending, provision: true,
		},
		"no class": {
			facts: claimFacts{claim: newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To("") }), fallback: now},
			phase: corev1.ClaimPending, event: "FailedBinding no persistent volumes available for this claim and no storage class is set",
		},
		"a default class that came later": {
			facts:    claimFacts{claim: newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }), fallback: now},
			setClass: "fast",
		},
		"an unknown class": {
			facts: claimFacts{claim: newClaim()},
			phase: corev1.ClaimPending, event: `ProvisioningFailed storageclass.storage.k8s.io "fast" not found`,
		},
		"a named volume that is missing": {
			facts: claimFacts{claim: newClaim(named("pv"))},
			phase: corev1.ClaimPending,
		},
		"a named volume": {
			facts: claimFacts{claim: newClaim(named("pv")), named: newPV("pv", "5Gi")},
			bind:  "pv",
		},
		"a named volume that is too small": {
			facts: claimFacts{claim: newClaim(named("pv")), named: newPV("pv", "1Gi")},
			phase: corev1.ClaimPending, event: `VolumeMismatch Cannot bind to requested volume "pv": requested PV is too small`,
		},
		"a named volume of another claim": {
			facts: claimFacts{claim: newClaim(named("pv")), named: newPV("pv", "5Gi", refersTo("c2"))},
			phase: corev1.ClaimPending, event: `FailedBinding volume "pv" already bound to a different claim.`,
		},
		"bound, the volume forgot": {
			facts: claimFacts{claim: newClaim(named("pv"), completed), named: newPV("pv", "5Gi")},
			bind:  "pv",
		},
		"bound to a volume that is gone": {
			facts: claimFacts{claim: newClaim(named("pv"), completed)},
			phase: corev1.ClaimLost, event: "ClaimLost Bound claim has lost its PersistentVolume.",
		},
		"bound to a volume of another": {
			facts: claimFacts{claim: newClaim(named("pv"), completed), named: newPV("pv", "5Gi", refersTo("c2"))},
			phase: corev1.ClaimLost, event: "ClaimMisbound Two claims are bound to the same volume",
		},
		"bound to nothing": {
			facts: claimFacts{claim: newClaim(completed)},
			phase: corev1.ClaimLost, event: "ClaimLost Bound claim has lost reference",
		},
	} {
		t.Run(name, func(t *testing.T) {
			plan := planClaim(tc.facts)
			bind := ""
			if plan.bind != nil {
				bind = plan.bind.Name
			}
			told := plan.event
			if told == (event{}) {
				told = plan.onPhase
			}
			text := strings.TrimSpace(told.reason + " " + told.note)
			if bind != tc.bind || plan.phase != tc.phase || plan.provision != tc.provision || plan.setClass != tc.setClass || !strings.HasPrefix(text, tc.event) || tc.event == "" && text != "" {
				t.Errorf("plan binds %q, phase %q, provisions %v, class %q, event %q; want %q, %q, %v, %q, %q",
					bind, plan.phase, plan.provision, plan.setClass, text, tc.bind, tc.phase, tc.provision, tc.setClass, tc.event)
			}
		})
	}
}

// ours makes a volume one of the built-in provisioner.
func ours(pv *corev1.PersistentVolume) {
	pv.Spec.CSI, pv.Spec.Local = nil, &corev1.LocalVolumeSource{Path: "/data/volumes/" + pv.Name + "-1"}
	pv.Annotations[local.ProvisionedBy], pv.Annotations[local.NodeAnnotation] = local.Provisioner, "n1"
	pv.Finalizers = []string{local.Finalizer}
}

func leaving(pv *corev1.PersistentVolume) {
	pv.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
}

func inPhase(phase corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) {
	return func(pv *corev1.PersistentVolume) { pv.Status.Phase = phase }
}

func policy(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
	return func(pv *corev1.PersistentVolume) { pv.Spec.PersistentVolumeReclaimPolicy = p }
}

func TestPlanVolume(t *testing.T) {
	bound := newClaim(named("pv"))
	for name, tc := range map[string]struct {
		pv    *corev1.PersistentVolume
		claim *corev1.PersistentVolumeClaim
		node  nodeFacts
		want  string
	}{
		"new":                                {pv: newPV("pv", "5Gi"), want: "Available"},
		"reserved by a user":                 {pv: newPV("pv", "5Gi", refersTo("")), want: "Available"},
		"bound":                              {pv: newPV("pv", "5Gi", refersTo("c1")), claim: bound, want: "Bound"},
		"being bound":                        {pv: newPV("pv", "5Gi", refersTo("c1")), claim: newClaim(), want: ""},
		"claim of another mode":              {pv: newPV("pv", "5Gi", refersTo("c1"), func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }), claim: newClaim(), want: "VolumeMismatch"},
		"claim has another volume":           {pv: newPV("pv", "5Gi", refersTo("c1")), claim: newClaim(named("other")), want: "unbind"},
		"made for a claim that has another":  {pv: newPV("pv", "5Gi", refersTo("c1"), ours), claim: newClaim(named("other")), want: "Released delete"},
		"another's, claim gone":              {pv: newPV("pv", "5Gi", refersTo("c1")), want: "Released"},
		"kept":                               {pv: newPV("pv", "5Gi", refersTo("c1"), policy(corev1.PersistentVolumeReclaimRetain)), want: "Released"},
		"to be recycled":                     {pv: newPV("pv", "5Gi", refersTo("c1"), policy(corev1.PersistentVolumeReclaimRecycle)), want: "Failed VolumeFailedRecycle"},
		"nobody can delete it":               {pv: newPV("pv", "5Gi", refersTo("c1"), func(pv *corev1.PersistentVolume) { pv.Spec.CSI = nil }), want: "Failed VolumeFailedDelete"},
		"ours, claim gone":                   {pv: newPV("pv", "5Gi", refersTo("c1"), ours), want: "Released delete"},
		"ours, node told":                    {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, inPhase(corev1.VolumeReleased)), node: nodeFacts{exists: true}, want: "Released order"},
		"ours, node has removed it":          {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, inPhase(corev1.VolumeReleased)), node: nodeFacts{exists: true, removed: true}, want: "Released release"},
		"ours, node gone":                    {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, inPhase(corev1.VolumeReleased)), want: "Released release VolumeFailedDelete"},
		"ours, deleted while in use":         {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, inPhase(corev1.VolumeBound)), claim: bound, node: nodeFacts{exists: true}, want: "Bound"},
		"ours, deleted while being bound":    {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, inPhase(corev1.VolumeBound)), claim: newClaim(), node: nodeFacts{exists: true}, want: ""},
		"ours and kept, deleted by a user":   {pv: newPV("pv", "5Gi", refersTo("c1"), ours, leaving, policy(corev1.PersistentVolumeReclaimRetain)), node: nodeFacts{exists: true}, want: "Released release"},
		"ours, never bound, deleted by user": {pv: newPV("pv", "5Gi", ours, leaving), node: nodeFacts{exists: true}, want: "Available order"},
	} {
		t.Run(name, func(t *testing.T) {
			p := planVolume(tc.pv, tc.claim, tc.node)
			var got []string
			for word, yes := range map[string]bool{"unbind": p.unbind, "delete": p.delete, "order": p.order, "release": p.release} {
				if yes {
					got = append(got, word)
				}
			}
			text := strings.Join(strings.Fields(string(p.phase)+" "+strings.Join(got, " ")+" "+p.onPhase.reason+" "+p.event.reason), " ")
			if text != tc.want {
				t.Errorf("plan is %q, want %q", text, tc.want)
			}
			if p.order != ordered(tc.pv) && p.order {
				t.Error("the plan orders a removal that the node's list leaves out")
			}
		})
	}
}

func TestPlanLocal(t *testing.T) {
	node := func(name string, count int) localNode {
		return localNode{name: name, labels: map[string]string{corev1.LabelHostname: name + ".lan", corev1.LabelTopologyZone: "z-" + name}, dir: "/data/volumes", fit: true, count: count}
	}
	nodes := []localNode{node("n1", 3), node("n2", 1), node("n3", 1), {name: "foreign", fit: true}}
	zone := func(names ...string) []corev1.TopologySelectorTerm {
		return []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelTopologyZone, Values: names}}}}
	}
	chosen := func(name string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Annotations[storagehelpers.AnnSelectedNode] = name }
	}
	for name, tc := range map[string]struct {
		claim      *corev1.PersistentVolumeClaim
		class      func(*storagev1.StorageClass)
		node       string
		note       string
		reschedule bool
	}{
		"the chosen node":        {claim: newClaim(chosen("n1")), node: "n1"},
		"the emptiest":           {claim: newClaim(), node: "n2"},
		"the allowed one":        {claim: newClaim(), class: func(c *storagev1.StorageClass) { c.AllowedTopologies = zone("z-n3", "z-x") }, node: "n3"},
		"none allowed":           {claim: newClaim(), class: func(c *storagev1.StorageClass) { c.AllowedTopologies = zone("z-x") }, note: "no node is ready"},
		"chosen one not allowed": {claim: newClaim(chosen("n1")), class: func(c *storagev1.StorageClass) { c.AllowedTopologies = zone("z-x") }, note: "not in the allowed topologies", reschedule: true},
		"chosen one is gone":     {claim: newClaim(chosen("n9")), note: `node "n9" not found`, reschedule: true},
		"chosen one keeps none":  {claim: newClaim(chosen("foreign")), note: "keeps no local volumes", reschedule: true},
		"shared": {claim: newClaim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}), note: "ReadWriteOnce"},
		"block":                   {claim: newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) }), note: "not block devices"},
		"selector":                {claim: newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }), note: "selector"},
		"from a snapshot":         {claim: newClaim(func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }), note: "Only CSI plugin"},
		"mount options":           {claim: newClaim(), class: func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime"} }, note: "Mount options are not supported"},
		"parameters of the class": {claim: newClaim(), class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"a": "b"} }, note: "no parameters"},
	} {
		t.Run(name, func(t *testing.T) {
			class := newClass("fast", storagev1.VolumeBindingImmediate, local.Provisioner)
			if tc.class != nil {
				tc.class(class)
			}
			pv, no := planLocal(tc.claim, class, nodes, "ab12")
			switch {
			case no != nil && (tc.note == "" || !strings.Contains(no.note, tc.note) || no.reschedule != tc.reschedule):
				t.Errorf("refused: %+v, want %q, %v", *no, tc.note, tc.reschedule)
			case no == nil && tc.note != "":
				t.Errorf("made %s, want %q", pv.Spec.Local.Path, tc.note)
			case no == nil:
				values := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values
				if pv.Annotations[local.NodeAnnotation] != tc.node || values[0] != tc.node+".lan" || local.Folder(pv) != "pvc-c1-ab12" || pv.Name != "pvc-c1" {
					t.Errorf("volume %s at %s on %v, want on %s", pv.Name, pv.Spec.Local.Path, values, tc.node)
				}
			}
		})
	}
}

func TestDefaultClass(t *testing.T) {
	at := func(name string, seconds int64, is string) storagev1.StorageClass {
		return storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{
			Name: name, CreationTimestamp: metav1.Unix(seconds, 0), Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": is},
		}}
	}
	for name, tc := range map[string]struct {
		classes []storagev1.StorageClass
		want    string
	}{
		"none":              {[]storagev1.StorageClass{at("a", 1, "false")}, ""},
		"the newest":        {[]storagev1.StorageClass{at("a", 1, "true"), at("b", 3, "true"), at("c", 2, "true"), at("d", 4, "")}, "b"},
		"the first by name": {[]storagev1.StorageClass{at("b", 1, "true"), at("a", 1, "true")}, "a"},
	} {
		got := ""
		if class := defaultClass(tc.classes); class != nil {
			got = class.Name
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
