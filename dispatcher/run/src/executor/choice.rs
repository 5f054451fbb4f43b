//! The choice of the executor for each module.

use std::sync::Arc;

use async_trait::async_trait;
use ion_csi::ticket::{TicketKey, TicketKeyError};
use ion_jobs::job::AttemptOutcome;
use ion_jobs::pipeline::{ExecutorKind, Module};
use ion_model::errors::error_chain;
use ion_model::record::JobRecord;
use ion_plane::node::Node;
use tokio::sync::{OnceCell, watch};

#[cfg(feature = "kubernetes")]
use super::kubernetes::{Kubernetes, KubernetesError};
use super::local::LocalExecutor;
use super::{AttemptStart, BatchStart, Executor, OutputWatcher, RunResult, StopReason};

/// The settings of a dispatcher for jobs that run as pods.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The key that signs the pods' tokens, or the reason why it cannot be had.
    pub key: Result<TicketKey, TicketKeyError>,
    /// The namespace where pods run; none: the one of the kubeconfig, or the dispatcher's own.
    pub namespace: Option<String>,
}

/// The reason why jobs cannot run as pods.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This build was made without the `kubernetes` feature.
    #[error(
        "this ion was built without Kubernetes; `cargo build --release --features kubernetes` \
         builds one that has it"
    )]
    NotBuilt,
    /// The cluster cannot be used.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
}

/// The executors of one dispatcher.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "kubernetes"),
    expect(dead_code, reason = "some fields serve a cluster only")
)]
pub struct Executors {
    node: Arc<Node>,
    local: Arc<LocalExecutor>,
    settings: ClusterSettings,
    output: Option<Arc<dyn OutputWatcher>>,
    /// Connected when the first module needs it.
    cluster: OnceCell<Arc<dyn Executor>>,
}

impl Executors {
    /// Returns the executors: `local` for this machine, and a cluster's, which is connected when it
    /// is needed.
    pub fn new(
        node: Arc<Node>,
        local: Arc<LocalExecutor>,
        settings: ClusterSettings,
        output: Option<Arc<dyn OutputWatcher>>,
    ) -> Self {
        Self { node, local, settings, output, cluster: OnceCell::new() }
    }

    /// Returns the executor that runs jobs as pods.
    ///
    /// # Errors
    /// If no cluster is configured, or this build has no Kubernetes.
    pub async fn cluster(&self) -> Result<&Arc<dyn Executor>, ClusterError> {
        self.cluster.get_or_try_init(|| self.connect()).await
    }

    #[cfg(feature = "kubernetes")]
    async fn connect(&self) -> Result<Arc<dyn Executor>, ClusterError> {
        let key = self.settings.key.clone().map_err(KubernetesError::from)?;
        let namespace = self.settings.namespace.clone();
        let (output, secrets) = (self.output.clone(), self.local.secrets().clone());
        Ok(Arc::new(Kubernetes::new(self.node.clone(), key, namespace, output, secrets).await?))
    }

    #[cfg(not(feature = "kubernetes"))]
    async fn connect(&self) -> Result<Arc<dyn Executor>, ClusterError> {
        Err(ClusterError::NotBuilt)
    }
}

#[async_trait]
impl Executor for Executors {
    async fn run(
        &self,
        start: AttemptStart,
        stop: watch::Receiver<Option<StopReason>>,
    ) -> RunResult {
        match start.module.executor {
            ExecutorKind::Local | ExecutorKind::Container => {
                RunResult::Ended(self.local.run_to_end(start, stop).await)
            }
            ExecutorKind::Kubernetes => match self.cluster().await {
                Ok(cluster) => cluster.run(start, stop).await,
                Err(error) => RunResult::Ended(AttemptOutcome::failed(error_chain(&error))),
            },
        }
    }

    async fn run_batch(&self, batch: BatchStart) -> Vec<AttemptOutcome> {
        self.local.run_batch_to_end(batch).await
    }

    async fn clean_up(&self, module: &Module, job: &JobRecord) {
        if module.executor == ExecutorKind::Kubernetes
            && let Some(cluster) = self.cluster.get()
        {
            cluster.clean_up(module, job).await;
        }
    }
}
