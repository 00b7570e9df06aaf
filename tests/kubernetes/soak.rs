//! Nothing fails because of us: every claim under open-loop load, where a stall cannot hide.

use crate::shop::{SYSTEM, Whole, abrupt, at_least, deployment, is_through, under_load};
use airlane_tests::{kube::PODS_SOON, until::until};

#[tokio::test]
async fn restarts_under_load_lose_no_request() {
    let Some(whole) = Whole::new().await else { return };
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 2, &[])).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    is_through(&shop, "front").await;
    let restart = async |deployment: &str| {
        shop.kubectl(&["rollout", "restart", deployment]).await.unwrap();
        shop.rolled_out(deployment).await;
    };

    let report = under_load(&shop, "front", 200.0, async |mut sent| {
        for _ in 0..3 {
            restart("deployment/payments-v1").await;
        }
        at_least(&mut sent, 5_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(5_000);

    let report = under_load(&shop, "front", 200.0, async |mut sent| {
        let pods = "--selector=app.kubernetes.io/component=operator";
        let system = ["--namespace", SYSTEM];
        let kill = ["delete", "pod", pods, "--grace-period=0", "--force"];
        whole.cluster.kubectl(&[&system[..], &kill].concat()).await.unwrap();
        until("there is an operator again", PODS_SOON, async || {
            let wait = ["wait", "pod", pods, "--for=condition=Ready", "--timeout=1s"];
            whole.cluster.kubectl(&[&system[..], &wait].concat()).await
        })
        .await;
        // It knows who runs, and lets in who starts.
        restart("deployment/payments-v1").await;
        at_least(&mut sent, 2_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(2_000);

    let report = under_load(&shop, "front", 100.0, async |mut sent| {
        shop.apply(&abrupt("payments", 2)).await.unwrap();
        shop.rolled_out("deployment/payments-abrupt").await;
        shop.kubectl(&["delete", "deployment", "payments-v1"]).await.unwrap();
        for _ in 0..2 {
            restart("deployment/payments-abrupt").await;
        }
        let now = *sent.borrow();
        at_least(&mut sent, now + 200).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(1_000);
}
