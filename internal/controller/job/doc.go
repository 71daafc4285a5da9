// Package job runs Jobs and CronJobs, and deletes finished Jobs whose time to live is over.
//
// A Job starts pods until enough of them have succeeded. Each pod carries a finalizer until
// it is counted: first its UID is written to the Job's status, then the finalizer is
// removed, then the UID becomes part of a number. So a pod is counted exactly once, whatever
// crashes in between. A CronJob makes a Job, named after its minute, at each time of its
// schedule.
//
// A pass over a Job is pure but for the writes between its steps: observe, judge, planPods,
// settle, track, release and finish are functions of a pass; Controller is the shell that
// writes. Status, conditions, reasons, event texts and their order are those of Kubernetes
// 1.36, because tools read them. Start at Controller.reconcile and CronController.reconcile.
package job
