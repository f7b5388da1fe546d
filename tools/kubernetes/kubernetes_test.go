// Package kubernetes_test tries what deploy/ gives to a cluster on a real control plane: etcd, API server, controllers
// and scheduler, with kwok in place of kubelets. make test-kubernetes builds the programs; one that is not there skips
// the test.
package kubernetes_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

var chart = filepath.Join(root, "deploy", "helm", "mmserve")

func TestKubernetes(t *testing.T) {
	c := startCluster(t)
	c.nodes(t, "node", 30, "64", "256Gi")
	c.say(t, "ready: 30 nodes in 3 zones; %s", c.usage())
	for _, step := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"definitions", definitions}, {"install", install}, {"upgrade", upgrade}, {"refused", refused},
		{"variants", variants},
		{"kustomize", kustomized}, {"others", others}, {"captions", captions}, {"fleet", fleet},
		{"autoscale", autoscale},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, c) }) {
			break
		}
		c.say(t, "%s: done; %s", step.name, c.usage())
	}
}

// definitions installs the kinds of other projects, from their modules.
func definitions(t *testing.T, c *cluster) {
	count := 0
	for name, paths := range map[string][]string{
		"keda": {"config/crd/bases/keda.sh_scaledobjects.yaml",
			"config/crd/bases/keda.sh_triggerauthentications.yaml"},
		"gateway": {"config/crd/standard/gateway.networking.k8s.io_grpcroutes.yaml",
			"config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"},
		"extension": {"config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"},
		"kserve": {"config/crd/full/serving.kserve.io_servingruntimes.yaml",
			"config/crd/full/serving.kserve.io_inferenceservices.yaml"},
		"kueue": {"config/components/crd/bases/kueue.x-k8s.io_clusterqueues.yaml",
			"config/components/crd/bases/kueue.x-k8s.io_localqueues.yaml",
			"config/components/crd/bases/kueue.x-k8s.io_resourceflavors.yaml"},
	} {
		for _, path := range paths {
			text, err := os.ReadFile(filepath.Join(module(t, name), filepath.FromSlash(path)))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range parse(t, text) {
				// What converts between versions is a service that is not here; the version that is stored is enough.
				unstructured.RemoveNestedField(o.Object, "spec", "conversion")
				if err := c.create(t.Context(), "", o); err != nil {
					t.Fatal(err)
				}
				count++
			}
		}
		c.say(t, "definitions of %s", modules[name])
	}
	eventually(t, time.Minute, "definitions are served", func() error {
		list, err := c.any.Resource(definitionsOf).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for _, o := range list.Items {
			conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
			for _, one := range conditions {
				if one, ok := one.(map[string]any); ok && one["type"] == "Established" && one["status"] == "True" {
					ready++
				}
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d", ready, count)
		}
		return nil
	})
	c.mapper.Reset() // it remembers which kinds there are
	c.takeWarnings()
}

// secrets makes the Secrets that values name.
func secrets(t *testing.T, c *cluster, namespace string) {
	t.Helper()
	for name, data := range map[string]map[string]string{
		"mmserve-tls":   {"tls.crt": "a", "tls.key": "b", "ca.crt": "c"},
		"mmserve-keys":  {"keys.jsonl": "{}"},
		"mmserve-admin": {"key": "k"},
		"hub":           {"token": "t"},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
		if _, err := c.kube.CoreV1().Secrets(namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// available waits until a Deployment has all its replicas, of its newest template only.
func available(t *testing.T, c *cluster, namespace, name string, replicas int32) *appsv1.Deployment {
	t.Helper()
	var last *appsv1.Deployment
	eventually(t, 5*time.Minute, "the Deployment is available", func() error {
		d, err := c.kube.AppsV1().Deployments(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		last = d
		s := d.Status
		if s.ObservedGeneration != d.Generation || s.AvailableReplicas != replicas ||
			s.UpdatedReplicas != replicas || s.Replicas != replicas {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return last
}

// install has helm install the chart into a namespace where pods have to be restricted.
func install(t *testing.T, c *cluster) {
	c.namespace(t, "mm")
	secrets(t, c, "mm")
	began := time.Now()
	out, err := c.helm(t, "install", "mmserve", chart, "-n", "mm", "-f", values("secure"),
		"--wait=watcher", "--timeout=3m")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := available(t, c, "mm", "mmserve", 2)
	c.say(t, "helm install: %d replicas available after %.1f s", d.Status.AvailableReplicas,
		time.Since(began).Seconds())
	if w := c.takeWarnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	pods, err := c.kube.CoreV1().Pods("mm").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	zones := map[string]bool{}
	for _, p := range pods.Items {
		n, err := c.kube.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		zones[n.Labels["topology.kubernetes.io/zone"]] = true
	}
	if len(zones) != 2 {
		t.Errorf("2 pods are in the zones %v", zones)
	}
	// The namespace does refuse what is not restricted: the same pod with one right more.
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "wide"}, Spec: *pods.Items[0].Spec.DeepCopy()}
	p.Spec.NodeName, p.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = "", ptr.To(true)
	_, err = c.kube.CoreV1().Pods("mm").Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "allowPrivilegeEscalation") {
		t.Errorf("a pod that may gain rights: %v", err)
	}
	c.say(t, "Pod Security: restricted pods are in %d zones; one that may gain rights is forbidden", len(zones))
}

// upgrade changes a flag and a pod's resources, and goes back.
func upgrade(t *testing.T, c *cluster) {
	began := time.Now()
	before := available(t, c, "mm", "mmserve", 2)
	out, err := c.helm(t, "upgrade", "mmserve", chart, "-n", "mm", "-f", values("secure"),
		"--set", "config.slots=32,replicaCount=3", "--wait=watcher", "--timeout=3m")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	after := available(t, c, "mm", "mmserve", 3)
	config, err := c.kube.CoreV1().ConfigMaps("mm").Get(t.Context(), "mmserve", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sum := func(d *appsv1.Deployment) string { return d.Spec.Template.Annotations["checksum/config"] }
	if !strings.Contains(config.Data["mmserve.yaml"], "slots: 32") || sum(before) == sum(after) {
		t.Errorf("config %q, template %s and %s", config.Data["mmserve.yaml"], sum(before), sum(after))
	}
	c.say(t, "helm upgrade: 3 replicas with the new configuration after %.1f s", time.Since(began).Seconds())
	if out, err := c.helm(t, "rollback", "mmserve", "1", "-n", "mm", "--wait=watcher", "--timeout=3m"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := available(t, c, "mm", "mmserve", 2); sum(d) != sum(before) {
		t.Error("after the rollback the template is another")
	}
	c.say(t, "helm rollback: as before")
}

// refused are values that users get wrong, and what the error has to name.
func refused(t *testing.T, c *cluster) {
	for set, want := range map[string]string{
		"config.slot=4":                                   "slot",
		"config.slots=many":                               "slots",
		"config.precision=int3":                           "precision",
		"replicas=3":                                      "replicas",
		"shutdown.graceSeconds=0":                         "graceSeconds",
		"resources.limits.memory=lots":                    "memory",
		"autoscaling.kvUtilization=70":                    "kvUtilization",
		"tls.secretName=":                                 "allowInsecureListen",
		"auth.keysSecretName=":                            "auth.keysSecretName",
		"model.hub=a/b,model.claim=c":                     "model.hub",
		"model.hub=a/b,model.pull=job":                    "cache.claim",
		"tls.clientCA=true,metrics.enabled=false":         "metrics.enabled",
		"extraEnv[0].name=MMSERVE_LISTEN":                 "extraEnv",
		"image.digest=sha256:0":                           "digest",
		"podDisruptionBudget.maxUnavailable=0":            "maxUnavailable",
		"autoscaling.kind=hpa,autoscaling.minReplicas=20": "minReplicas",
	} {
		out, err := c.helm(t, "upgrade", "mmserve", chart, "-n", "mm", "-f", values("secure"), "--set", set)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s; want it refused, naming %s", set, err, out, want)
			continue
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		c.say(t, "--set %s: %s", set, strings.TrimSpace(lines[len(lines)-1]))
	}
}

// variants installs the other ways to set the chart, each in its namespace.
func variants(t *testing.T, c *cluster) {
	for _, name := range []string{"plain", "mutual", "hub", "keda"} {
		namespace := "mm-" + name
		c.namespace(t, namespace)
		secrets(t, c, namespace)
		for _, claim := range []string{"models", "cache"} {
			c.createAll(t, namespace, fmt.Appendf(nil, `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: %s},
 spec: {accessModes: [ReadWriteMany], storageClassName: none, volumeName: %s-%s, resources: {requests: {storage: 1Gi}}}}`, claim, namespace, claim))
			c.createAll(t, namespace, fmt.Appendf(nil, `{apiVersion: v1, kind: PersistentVolume, metadata: {name: %s-%s},
 spec: {accessModes: [ReadWriteMany], storageClassName: none, capacity: {storage: 1Gi}, hostPath: {path: /none}}}`, namespace, claim))
		}
		if out, err := c.helm(t, "install", "mmserve", chart, "-n", namespace, "-f", values(name)); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		replicas := int32(2)
		if name == "mutual" || name == "keda" { // what scales them has not said how many: one
			replicas = 1
		}
		if name == "mutual" { // its HorizontalPodAutoscaler keeps the least
			replicas = 2
		}
		available(t, c, namespace, "mmserve", replicas)
		if w := c.takeWarnings(); len(w) > 0 {
			t.Errorf("%s: warnings: %q", name, w)
		}
		c.say(t, "variant %s: available", name)
	}
	jobs, err := c.kube.BatchV1().Jobs("mm-hub").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(jobs.Items) != 1 {
		t.Fatal(jobs, err)
	}
	pods := jobPods(t, c, "mm-hub", jobs.Items[0].Name, 1)
	if err := c.endPod(t.Context(), pods[0], 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the Job is complete", func() error {
		j, err := c.kube.BatchV1().Jobs("mm-hub").Get(t.Context(), jobs.Items[0].Name, metav1.GetOptions{})
		if err == nil && j.Status.Succeeded != 1 {
			err = errNotYet
		}
		return err
	})
	c.say(t, "the Job that pulls a model completes")
}

// kustomized applies the base, which is the chart's rendering.
func kustomized(t *testing.T, c *cluster) {
	c.namespace(t, "mmserve")
	secrets(t, c, "mmserve")
	kinds := c.createAll(t, "mmserve", build(t, filepath.Join(root, "deploy", "kustomize", "base")))
	available(t, c, "mmserve", "mmserve", 2)
	c.say(t, "kustomize base: %s", strings.Join(kinds, ", "))
	if w := c.takeWarnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
}

// others are the manifests for what is built upon a cluster: all fields are ones that their definitions have.
func others(t *testing.T, c *cluster) {
	c.namespace(t, "others")
	kinds := c.createAll(t, "others", build(t, filepath.Join(root, "deploy", "gateway")))
	for _, path := range []string{"kserve/runtime.yaml", "kserve/service.yaml", "jobs/kueue.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", filepath.FromSlash(path)))
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, c.createAll(t, "others", text)...)
	}
	c.say(t, "accepted with strict fields: %s", strings.Join(kinds, ", "))
	if w := c.takeWarnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	// A field that is not there is refused, so that accepting says something.
	for _, o := range build1(t, filepath.Join(root, "deploy", "gateway"), "InferencePool") {
		o.SetName("wrong")
		_ = unstructured.SetNestedField(o.Object, "x", "spec", "endpointPicker")
		if err := c.create(t.Context(), "others", o); err == nil || !strings.Contains(err.Error(), "endpointPicker") {
			t.Errorf("a pool with a field that is unknown: %v", err)
		}
	}
}

// jobPods waits for that many pods of a Job that run.
func jobPods(t *testing.T, c *cluster, namespace, job string, count int) (running []corev1.Pod) {
	t.Helper()
	eventually(t, 2*time.Minute, "pods of the Job run", func() error {
		list, err := c.kube.CoreV1().Pods(namespace).List(t.Context(),
			metav1.ListOptions{LabelSelector: "job-name=" + job})
		if err != nil {
			return err
		}
		running = nil
		for _, p := range list.Items {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				running = append(running, p)
			}
		}
		if len(running) < count {
			return fmt.Errorf("%d of %d run", len(running), count)
		}
		return nil
	})
	return running
}

const indexOf = "batch.kubernetes.io/job-completion-index"

// captions runs the Indexed Job: a pod that the scheduler preempts is tried again and does not count, an index that
// fails is marked, the others complete.
func captions(t *testing.T, c *cluster) {
	c.namespace(t, "captions")
	c.nodes(t, "spot", 1, "1", "4Gi") // room for four of the Job's pods
	text, err := os.ReadFile(filepath.Join(root, "deploy", "jobs", "indexed-job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	job := &batchv1.Job{}
	c0 := runtime.DefaultUnstructuredConverter
	if err := c0.FromUnstructuredWithValidation(parse(t, text)[0].Object, job, true); err != nil {
		t.Fatal(err)
	}
	// Four shards on one node, and one failure is enough: what the file says takes hours here.
	job.Spec.Completions, job.Spec.Parallelism = ptr.To[int32](4), ptr.To[int32](4)
	job.Spec.BackoffLimitPerIndex = ptr.To[int32](0)
	job.Spec.MaxFailedIndexes = ptr.To[int32](2)
	job.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "spot"}
	jobs := c.kube.BatchV1().Jobs("captions")
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	if _, err := jobs.Create(t.Context(), job, strict); err != nil {
		t.Fatal(err)
	}
	pods := jobPods(t, c, "captions", job.Name, 4)
	c.say(t, "captions: 4 shards run on a node that is full")
	taken := c.preempt(t, pods)
	c.say(t, "captions: shard %s of 4 was preempted: condition DisruptionTarget", taken)
	pods = jobPods(t, c, "captions", job.Name, 4)
	for _, p := range pods {
		exit := int32(0)
		if p.Annotations[indexOf] == "2" {
			exit = 1
		}
		if err := c.endPod(t.Context(), p, exit); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 2*time.Minute, "the Job has ended", func() error {
		j, err := jobs.Get(t.Context(), job.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := j.Status
		if s.CompletedIndexes != "0,1,3" || s.FailedIndexes == nil || *s.FailedIndexes != "2" ||
			s.Active > 0 || len(s.Conditions) == 0 {
			return fmt.Errorf("%+v", s)
		}
		c.say(t, "captions: completed %s, failed %s, %d failed pods count; %s", s.CompletedIndexes,
			*s.FailedIndexes, s.Failed, s.Conditions[len(s.Conditions)-1].Type)
		return nil
	})
}

// preempt has the scheduler give one of the pods' places to a pod of a higher priority, and gives its index when
// another pod of it is there.
func (c *cluster) preempt(t *testing.T, before []corev1.Pod) (index string) {
	t.Helper()
	c.createAll(t, "captions", []byte(
		`{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: urgent}, value: 1000000}`))
	urgent := before[0].DeepCopy()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "urgent", Namespace: "captions"}, Spec: corev1.PodSpec{
		PriorityClassName: "urgent", NodeSelector: map[string]string{"pool": "spot"},
		Containers: urgent.Spec.Containers,
		Volumes:    urgent.Spec.Volumes, SecurityContext: urgent.Spec.SecurityContext,
	}}
	p.Spec.Containers[0].Env = nil
	if _, err := c.kube.CoreV1().Pods("captions").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	known := map[string]string{}
	for _, p := range before {
		known[string(p.UID)] = p.Annotations[indexOf]
	}
	eventually(t, time.Minute, "a shard was preempted", func() error {
		events, err := c.kube.CoreV1().Events("captions").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "Preempted" && known[string(e.InvolvedObject.UID)] != "" {
				index = known[string(e.InvolvedObject.UID)]
				return nil
			}
		}
		return errNotYet
	})
	// The urgent pod goes; the shard's next pod has its place.
	if err := c.kube.CoreV1().Pods("captions").Delete(t.Context(), "urgent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the shard has another pod", func() error {
		list, err := c.kube.CoreV1().Pods("captions").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Annotations[indexOf] == index && known[string(p.UID)] == "" {
				return nil
			}
			// As a kubelet reports a pod that was taken away: it ended by SIGTERM. The condition is the scheduler's.
			if p.DeletionTimestamp != nil && p.Status.Phase == corev1.PodRunning && known[string(p.UID)] == index {
				if err := c.endPod(t.Context(), p, 143); err != nil {
					return err
				}
			}
		}
		return errNotYet
	})
	return index
}

// fleet scales to 200 replicas, rolls an upgrade through and empties nodes meanwhile: the disruption budget holds.
func fleet(t *testing.T, c *cluster) {
	began := time.Now()
	scale := func(set string) {
		out, err := c.helm(t, "upgrade", "mmserve", chart, "-n", "mm", "-f", values("secure"), "--set", set)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	scale("replicaCount=200")
	available(t, c, "mm", "mmserve", 200)
	c.say(t, "fleet: 200 replicas available after %.1f s; %s", time.Since(began).Seconds(), c.usage())
	began = time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var watch sync.WaitGroup
	least, most := int32(200), int32(0)
	watch.Go(func() { least, most = c.observe(ctx) })
	scale("replicaCount=200,config.slots=32")
	d := available(t, c, "mm", "mmserve", 200)
	stop()
	watch.Wait()
	c.say(t, "fleet: rolled in %.1f s, with %d to %d available of 200", time.Since(began).Seconds(), least, most)
	if least < 200 || most > 250 {
		t.Errorf("%d to %d were available during the upgrade, want 200 to 250: %v", least, most,
			d.Spec.Strategy.RollingUpdate)
	}
	c.evict(t)
}

// observe gives the least and the most available replicas until ctx ends.
func (c *cluster) observe(ctx context.Context) (least, most int32) {
	least = 1 << 30
	for ctx.Err() == nil {
		d, err := c.kube.AppsV1().Deployments("mm").Get(ctx, "mmserve", metav1.GetOptions{})
		if err == nil {
			least, most = min(least, d.Status.AvailableReplicas), max(most, d.Status.AvailableReplicas)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return least, most
}

// evict empties three nodes at once, as kubectl drain does: a pod that the budget protects is asked for again.
func (c *cluster) evict(t *testing.T) {
	t.Helper()
	list, err := c.kube.CoreV1().Pods("mm").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nodes := []string{"node-0", "node-1", "node-2"}
	for _, name := range nodes {
		patch := []byte(`{"spec":{"unschedulable":true}}`)
		_, err := c.kube.CoreV1().Nodes().Patch(t.Context(), name, "application/merge-patch+json", patch,
			metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var watch sync.WaitGroup
	var least int32
	watch.Go(func() { least, _ = c.observe(ctx) })
	began, evicted, held := time.Now(), 0, 0
	for _, p := range list.Items {
		if !slices.Contains(nodes, p.Spec.NodeName) {
			continue
		}
		eventually(t, time.Minute, "the pod is evicted", func() error {
			e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: "mm"}}
			err := c.kube.PolicyV1().Evictions("mm").Evict(t.Context(), e)
			if apierrors.IsTooManyRequests(err) {
				held++
			}
			return err
		})
		evicted++
	}
	available(t, c, "mm", "mmserve", 200)
	stop()
	watch.Wait()
	c.say(t, "fleet: three nodes emptied in %.1f s: %d pods evicted, %d evictions held back, never less than %d available",
		time.Since(began).Seconds(), evicted, held, least)
	if evicted < 3 || held == 0 || least < 199 {
		t.Errorf("evicted %d, held %d, least %d", evicted, held, least)
	}
}

// autoscale has the HorizontalPodAutoscaler follow the queue.
func autoscale(t *testing.T, c *cluster) {
	g := &gauges{kube: c}
	g.register(t)
	const namespace = "mm-mutual"
	replicas := func() int32 {
		d, err := c.kube.AppsV1().Deployments(namespace).Get(t.Context(), "mmserve", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return *d.Spec.Replicas
	}
	eventually(t, time.Minute, "the autoscaler asks for the metric", func() error {
		if g.asked.Load() < 2 {
			return errNotYet
		}
		return nil
	})
	if n := replicas(); n != 2 {
		t.Fatalf("%d replicas without load, want the least, 2", n)
	}
	began := time.Now()
	g.waiting.Store(9)
	eventually(t, 4*time.Minute, "the queue has it scale up", func() error {
		if n := replicas(); n != 10 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	})
	c.say(t, "autoscale: 9 wait in each (target 4): from 2 to the most, 10, in %.1f s", time.Since(began).Seconds())
	began = time.Now()
	g.waiting.Store(0)
	g.kv.Store(700) // exactly the target: none goes
	asked := g.asked.Load()
	eventually(t, time.Minute, "the autoscaler has looked four times", func() error {
		if g.asked.Load() < asked+4 {
			return errNotYet
		}
		return nil
	})
	if n := replicas(); n != 10 {
		t.Errorf("%d replicas while the KV cache is as full as wanted", n)
	}
	g.kv.Store(100)
	eventually(t, 3*time.Minute, "it scales down", func() error {
		if n := replicas(); n >= 10 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	})
	c.say(t, "autoscale: an empty queue and a full KV cache keep 10; with both empty the first goes after %.1f s",
		time.Since(began).Seconds())
}
